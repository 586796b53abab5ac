"""The emissions of :class:`.RegimeModel`: one :class:`.base.Spec` for each family."""
