//! The way to a running server: its admin socket.

use std::path::PathBuf;

use finial_daemon::argv::text;
use finial_daemon::dial::{self, Dialer};
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::debug::v1::debug_client::DebugClient;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::health_client::HealthClient;

use super::output::{Failure, fail};
use crate::settings::DEFAULT_SOCKET;

const SOCKET: &str = "SPIRE_SERVER_PRIVATE_SOCKET";
const TEMPLATE: &str = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";

/// The flags that name the server.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    /// The server's admin socket. Where the flag is left out, the environment variable
    /// SPIRE_SERVER_PRIVATE_SOCKET counts
    #[arg(long = "socketPath", default_value = DEFAULT_SOCKET)]
    socket_path: String,
    /// Which of several servers: the text that replaces %i in the environment variable
    /// SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE
    #[arg(long = "instance")]
    instance: Option<String>,
}

/// A connection to a server, made at the first call.
pub struct Client {
    channel: Channel,
    path: String,
}

impl Server {
    /// Must be called within a runtime.
    pub fn connect(&self) -> Result<Client, Failure> {
        let path = self.resolve(|name| std::env::var(name).ok())?;
        let dialer = Dialer::Unix(PathBuf::from(&path));
        Ok(Client { channel: dial::channel(dialer, None, "localhost"), path })
    }

    /// The flag if it differs from the default, else `-instance`, else the environment, else the default.
    fn resolve(&self, environment: impl Fn(&str) -> Option<String>) -> Result<String, Failure> {
        let set = |name| environment(name).filter(|value| !value.is_empty());
        let from_template = match self.instance.as_deref().filter(|instance| !instance.is_empty()) {
            None => None,
            Some(instance) => {
                let Some(template) = set(TEMPLATE) else {
                    return Err(fail(format!("you must define {TEMPLATE} to use the instance flag")));
                };
                if !template.contains("%i") {
                    return Err(fail(format!("failed to find %i in {TEMPLATE}")));
                }
                Some(template.replace("%i", instance))
            }
        };
        if self.socket_path != DEFAULT_SOCKET {
            return Ok(self.socket_path.clone());
        }
        Ok(from_template.or_else(|| set(SOCKET)).unwrap_or_else(|| DEFAULT_SOCKET.to_owned()))
    }
}

impl Client {
    pub fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.channel.clone())
    }

    pub fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    pub fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.channel.clone())
    }

    pub fn trust_domains(&self) -> TrustDomainClient<Channel> {
        TrustDomainClient::new(self.channel.clone())
    }

    pub fn svids(&self) -> SvidClient<Channel> {
        SvidClient::new(self.channel.clone())
    }

    pub fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.channel.clone())
    }

    pub fn debug(&self) -> DebugClient<Channel> {
        DebugClient::new(self.channel.clone())
    }

    pub fn logger(&self) -> LoggerClient<Channel> {
        LoggerClient::new(self.channel.clone())
    }

    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    /// The status in Go's words.
    pub fn text(&self, status: &Status) -> String {
        // SPIRE's dialer leaves two slashes of its target's form before an absolute path.
        let shown = if self.path.starts_with('/') { format!("//{}", self.path) } else { self.path.clone() };
        text::rpc_error(status, &shown)
    }

    /// The failure of a call.
    pub fn refused(&self, status: &Status) -> Failure {
        fail(self.text(status))
    }

    /// The failure of a call, with what was to be done before it.
    pub fn refused_to(&self, what: &str, status: &Status) -> Failure {
        fail(format!("{what}: {}", self.text(status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flag: &str, instance: &str, environment: &[(&str, &str)]) -> Result<String, String> {
        let flags = Server { socket_path: flag.to_owned(), instance: Some(instance.to_owned()) };
        let find = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        flags.resolve(find).map_err(|failure| failure.to_string())
    }

    #[test]
    fn flag_then_instance_then_environment_then_default() {
        let both = [(TEMPLATE, "/x/%i-%i.sock"), (SOCKET, "/env.sock")];
        for (flag, instance, environment, path) in [
            (DEFAULT_SOCKET, "", &[][..], DEFAULT_SOCKET),
            (DEFAULT_SOCKET, "", &both[1..], "/env.sock"),
            (DEFAULT_SOCKET, "", &[(SOCKET, "")][..], DEFAULT_SOCKET),
            (DEFAULT_SOCKET, "q", &both[..], "/x/q-q.sock"),
            ("/flag.sock", "q", &both[..], "/flag.sock"),
            ("rel.sock", "", &both[..], "rel.sock"),
            ("", "", &both[..], ""),
        ] {
            assert_eq!(resolve(flag, instance, environment).as_deref(), Ok(path), "{flag} {instance}");
        }
    }

    #[test]
    fn an_instance_needs_a_template() {
        assert_eq!(
            resolve(DEFAULT_SOCKET, "x", &[]).unwrap_err(),
            "Error: you must define SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag"
        );
        assert_eq!(
            resolve("/flag.sock", "x", &[(TEMPLATE, "/x/i.sock")]).unwrap_err(),
            "Error: failed to find %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE"
        );
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_told_as_spire_tells_it() {
        let server = Server { socket_path: "/nonexist/s.sock".to_owned(), instance: None };
        let client = server.connect().unwrap();
        let status = client.logger().get_logger(super::super::logger::ask()).await.unwrap_err();
        assert_eq!(
            client.refused_to("error fetching logger", &status).to_string(),
            "Error: error fetching logger: rpc error: code = Unavailable desc = connection error: desc = \
             \"transport: Error while dialing: dial unix ///nonexist/s.sock: connect: no such file or directory\""
        );
    }
}
