//! What any long-running program wants: time, listeners, settings, logs, keys. Knows no agents and no entries.

pub mod argv;
pub mod backoff;
pub mod clock;
pub mod data_dir;
pub mod dial;
pub mod health;
pub mod keys;
pub mod listen;
pub mod memory;
pub mod metrics;
pub mod private_file;
pub mod ready;
pub mod run;
pub mod settings;
pub mod telemetry;
pub mod web;
