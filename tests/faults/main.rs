//! What must not happen when things go wrong.

mod absence;
mod disk;
mod input;
mod time;
