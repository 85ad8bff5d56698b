//! Owns the app's platform as seen from here: the executables of its directory, called with a limit, and not believed
//! blindly. Their contract is scripts/platforms/README.md.
