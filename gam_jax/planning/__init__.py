"""What machines can do, by figures of their makers."""

from gam_jax.planning.profiles import Profile, profile_of, profiles

__all__ = ["Profile", "profile_of", "profiles"]
