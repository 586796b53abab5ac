"""Settings of the whole suite."""

import torch

# The tensors here are small: on a machine with other work to do, torch's threads wait for one
# another far longer than they compute.
torch.set_num_threads(1)
