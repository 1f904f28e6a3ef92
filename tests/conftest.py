from hypothesis import settings

# A busy machine is no failure: what is promised is what comes out, not when.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
