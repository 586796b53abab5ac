"""Each script of the gallery begins with nothing of the scripts before it."""

import pyro


def reset(gallery_conf, fname):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
