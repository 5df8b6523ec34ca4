//! Unpacks a slimlambda archive.
