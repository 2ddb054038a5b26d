//! Two programs that trust each other by SPIFFE ID: no sidecar, no certificate files, no reload.
//!
//! Both ends hold an `X509Source`, which follows the Workload API; the TLS configuration built from it
//! always presents the newest SVID and always checks against the newest bundle.

use std::io;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What can go wrong between two workloads.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Workload API gave no identity; an entry for this process may be missing.
    #[error("no identity from the Workload API at {endpoint}: {cause}")]
    NoIdentity {
        /// The socket that was asked.
        endpoint: String,
        /// What it answered.
        cause: String,
    },
    /// The SVID does not make a TLS configuration.
    #[error("the SVID is not usable for TLS: {0}")]
    Tls(String),
    /// The connection failed; a TLS refusal is reported here too.
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
}

/// Serves one greeting per client to anybody of its own trust domain; prints the address it listens on.
pub async fn serve(endpoint: &str) -> Result<(), Error> {
    let source = source(endpoint).await?;
    let trust_domain = own_id(&source)?.1;
    let authorize = authorizer::trust_domains([trust_domain]).map_err(tls)?;
    let config = mtls_server(source).authorize(authorize).build().map_err(tls)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let greeted = async {
                let mut stream = acceptor.accept(stream).await?;
                let caller = peer_id(stream.get_ref().1.peer_certificates());
                stream.write_all(format!("hello {caller}").as_bytes()).await?;
                stream.shutdown().await
            };
            if let Err(error) = greeted.await {
                eprintln!("a caller was turned away: {error}");
            }
        });
    }
}

/// Calls `address` and accepts no server but the one whose path is `/orders` in its own trust domain.
pub async fn call(endpoint: &str, address: &str) -> Result<(), Error> {
    let source = source(endpoint).await?;
    let (own, trust_domain) = own_id(&source)?;
    let wanted = format!("spiffe://{trust_domain}/orders");
    let authorize = authorizer::exact([wanted.as_str()]).map_err(tls)?;
    let config = mtls_client(source).authorize(authorize).build().map_err(tls)?;
    let name = ServerName::try_from("localhost").map_err(tls)?;
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let server = peer_id(stream.get_ref().1.peer_certificates());
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await?;
    println!("{own} called {server}");
    println!("and heard: {heard}");
    let (_, session) = stream.get_ref();
    if let (Some(version), Some(group)) =
        (session.protocol_version(), session.negotiated_key_exchange_group())
    {
        println!("over {version:?}, key exchange {:?}", group.name());
    }
    Ok(())
}

async fn source(endpoint: &str) -> Result<X509Source, Error> {
    X509Source::builder()
        .endpoint(endpoint)
        .picker(MostSpecific)
        .build()
        .await
        .map_err(|error| Error::NoIdentity { endpoint: endpoint.to_owned(), cause: error.to_string() })
}

/// A process may have several identities; these two use the one that is theirs alone.
#[derive(Debug)]
struct MostSpecific;

impl spiffe::x509_source::SvidPicker for MostSpecific {
    fn pick_svid(&self, svids: &[Arc<spiffe::X509Svid>]) -> Option<usize> {
        svids.iter().position(|svid| ["/orders", "/billing"].contains(&svid.spiffe_id().path()))
    }
}

fn own_id(source: &X509Source) -> Result<(String, String), Error> {
    let svid = source.svid().map_err(tls)?;
    Ok((svid.spiffe_id().to_string(), svid.spiffe_id().trust_domain().to_string()))
}

fn peer_id(chain: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> String {
    chain
        .and_then(|chain| chain.first())
        .and_then(|leaf| spiffe::cert::spiffe_id_from_der(leaf).ok())
        .map_or_else(|| "somebody without an identity".to_owned(), |id| id.to_string())
}

fn tls(error: impl ToString) -> Error {
    Error::Tls(error.to_string())
}
