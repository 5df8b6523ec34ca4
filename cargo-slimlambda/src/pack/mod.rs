//! Items and a plan → files: the sideload archive and the deployment package. Decides nothing.

pub mod archive;
pub mod zip;
