//! What a configuration says that is no error and should be known all the same.

use std::fmt;

/// A line for the log, once there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Info(String),
    Warning(String),
    /// A key that will go; SPIRE marks these lines for alerts.
    Deprecated(String),
}

impl Notice {
    pub fn text(&self) -> &str {
        match self {
            Notice::Info(text) | Notice::Warning(text) | Notice::Deprecated(text) => text,
        }
    }

    pub fn log(&self) {
        match self {
            Notice::Info(text) => tracing::info!("{text}"),
            Notice::Warning(text) => tracing::warn!("{text}"),
            Notice::Deprecated(text) => {
                tracing::warn!(alert = true, alert_type = "deprecated_config", "{text}");
            }
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.text())
    }
}
