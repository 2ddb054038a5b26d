//! Which Workload API socket is meant.

use std::path::PathBuf;

use finial_daemon::argv::text;
use finial_daemon::dial::{self, Dialer};
use tonic::Status;
use tonic::transport::Channel;

use crate::settings::DEFAULT_SOCKET_PATH;

const SOCKET: &str = "SPIRE_AGENT_PUBLIC_SOCKET";
const TEMPLATE: &str = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";

/// The flags that name the socket.
#[derive(Clone, Debug, clap::Args)]
pub struct Socket {
    /// The agent's Workload API socket. Where the flag is left out, the environment variable
    /// SPIRE_AGENT_PUBLIC_SOCKET counts
    #[arg(long = "socketPath", default_value = DEFAULT_SOCKET_PATH)]
    socket_path: String,
    /// Which of several agents: the text that replaces %i in the environment variable
    /// SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE
    #[arg(long = "instance")]
    instance: Option<String>,
}

/// Why no socket is meant.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    // The blank in front is SPIRE's.
    #[error(" {TEMPLATE} environment variable must be defined when using the instance flag")]
    NoTemplate,
    #[error("failed to find %i in {TEMPLATE}")]
    NoPlaceholder,
    #[error("failed to get absolute path for socket path: {0}")]
    NotAbsolute(#[from] std::io::Error),
}

/// A connection to an agent, made at the first call.
pub struct Connection {
    pub channel: Channel,
    path: PathBuf,
}

impl Connection {
    /// The status in Go's words.
    pub fn text(&self, status: &Status) -> String {
        text::rpc_error(status, &self.path.to_string_lossy())
    }
}

impl Socket {
    /// Must be called within a runtime.
    pub fn connect(&self) -> Result<Connection, SocketError> {
        let path = self.resolve(|name| std::env::var(name).ok())?;
        Ok(Connection { channel: dial::channel(Dialer::Unix(path.clone()), None, "localhost"), path })
    }

    /// The flag if it differs from the default, else `-instance`, else the environment, else the default; absolute.
    fn resolve(&self, environment: impl Fn(&str) -> Option<String>) -> Result<PathBuf, SocketError> {
        let set = |name| environment(name).filter(|value| !value.is_empty());
        let instance = self.instance.as_deref().filter(|instance| !instance.is_empty());
        let from_template = match instance {
            None => None,
            Some(instance) => {
                let template = set(TEMPLATE).ok_or(SocketError::NoTemplate)?;
                if !template.contains("%i") {
                    return Err(SocketError::NoPlaceholder);
                }
                Some(template.replace("%i", instance))
            }
        };
        let path = if self.socket_path != DEFAULT_SOCKET_PATH {
            self.socket_path.clone()
        } else {
            from_template.or_else(|| set(SOCKET)).unwrap_or_else(|| DEFAULT_SOCKET_PATH.to_owned())
        };
        // An empty path is the current directory, as in Go.
        let path = if path.is_empty() { ".".to_owned() } else { path };
        Ok(text::clean(&std::path::absolute(path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flag: &str, instance: &str, environment: &[(&str, &str)]) -> Result<String, String> {
        let flags = Socket { socket_path: flag.to_owned(), instance: Some(instance.to_owned()) };
        let find = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        flags.resolve(find).map(|path| path.display().to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn flag_then_instance_then_environment_then_default() {
        let default = DEFAULT_SOCKET_PATH;
        let both = [(TEMPLATE, "/x/%i-%i.sock"), (SOCKET, "/env.sock")];
        for (flag, instance, environment, path) in [
            (default, "", &[][..], default),
            (default, "", &both[1..], "/env.sock"),
            (default, "", &[(SOCKET, "")][..], default),
            (default, "q", &both[..], "/x/q-q.sock"),
            ("/flag.sock", "q", &both[..], "/flag.sock"),
            ("/flag.sock", "", &both[..], "/flag.sock"),
            ("/a/../b//c.sock", "", &[][..], "/b/c.sock"),
        ] {
            assert_eq!(resolve(flag, instance, environment).as_deref(), Ok(path), "{flag} {instance}");
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(resolve("rel.sock", "", &[]).unwrap(), here.join("rel.sock").display().to_string());
        assert_eq!(resolve("", "", &[]).unwrap(), here.display().to_string());
    }

    #[test]
    fn an_instance_needs_a_template() {
        assert_eq!(
            resolve(DEFAULT_SOCKET_PATH, "x", &[]).unwrap_err(),
            " SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE environment variable must be defined when using the instance flag"
        );
        assert_eq!(
            resolve("/flag.sock", "x", &[(TEMPLATE, "/x/i.sock")]).unwrap_err(),
            "failed to find %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE"
        );
    }
}
