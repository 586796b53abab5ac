"""Which parameters of a model EM may set in closed form, and how."""
