"""What machines can do, and what a step would take on them."""

from gam_jax.planning.profiles import Figure, Profile, profile, profile_of, profiles, read_profiles

__all__ = ["Figure", "Profile", "profile", "profile_of", "profiles", "read_profiles"]
