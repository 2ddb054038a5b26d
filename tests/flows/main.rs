//! What must work, end to end, in one process and in virtual time.

mod identities;
mod nodes;
mod rotation;
mod upstream;
