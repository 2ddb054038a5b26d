//! How many SVIDs a server signs on one core, through its real TLS port: `BatchNewX509SVID` and `NewJWTSVID`, asked for by
//! an attested agent that sits on another core. Beside it, in the same run and on the same core, the cryptographic
//! library's own limit (verify one signature and make one, P-256), and the reference server.
//!
//! `cargo bench -p finial-server --bench signing`, with ` -- jwt` for tokens alone; see [`estate`] for the programs. Takes
//! three to four minutes; asserts nothing.

mod estate;

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use estate::table::{self, Row};
use estate::{Estate, Outcome, Programs, TRUST_DOMAIN};
use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_identity::peer;
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::svid::v1 as svid;
use finial_proto::spire::api::types;
use futures::future::try_join_all;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tonic::transport::Channel;

const ENTRIES: usize = 10_000;
/// Requests prepared beforehand; the client goes round them.
const CSRS: usize = 2_000;
const WARM_UP: Duration = Duration::from_secs(2);
const SLICE: Duration = Duration::from_secs(4);
/// The median of so many slices counts.
const SLICES: usize = 3;
/// For the first argument: measure the library instead, or tokens alone.
const RAW: &str = "raw";
const TOKENS: &str = "jwt";
const RAW_TIME: Duration = Duration::from_secs(2);
/// About what is signed in a CSR or certificate.
const MESSAGE: usize = 600;

/// How calls come: an agent that renews all its SVIDs, many that need one, and many that need a token.
const SHAPES: [Shape; 3] = [
    Shape { kind: Kind::X509, batch: 500, at_once: 4 },
    Shape { kind: Kind::X509, batch: 1, at_once: 32 },
    Shape { kind: Kind::Jwt, batch: 1, at_once: 32 },
];

#[derive(Clone, Copy)]
struct Shape {
    kind: Kind,
    batch: usize,
    at_once: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    X509,
    Jwt,
}

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(RAW) => raw(),
        Some(TOKENS) => compare(&SHAPES[2..]),
        _ => compare(&SHAPES),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("signing: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn compare(shapes: &[Shape]) -> Outcome<()> {
    let (measured, asking) = estate::two_cores()?;
    let programs = Programs::all()?;
    estate::pin_self(asking)?;
    println!("load before: {}; programs on core {measured}, client on core {asking}", estate::load());
    let csrs = (0..CSRS).map(|_| csr()).collect::<Outcome<Vec<_>>>()?;
    let mut all = Vec::new();
    for one in &programs {
        all.push(measure(one, measured, shapes, &csrs).await?);
    }
    println!("load after: {}", estate::load());

    let column = |value: &dyn Fn(&Figures) -> f64| all.iter().map(value).collect::<Vec<_>>();
    let mut rows = vec![Row::new("library: verify + sign, per CPU-second", 0, column(&|f| f.raw), "")];
    for (index, shape) in shapes.iter().enumerate() {
        let rate = |f: &Figures| table::median(&f.rates[index].iter().map(|r| r.per_cpu).collect::<Vec<_>>());
        let wall =
            |f: &Figures| table::median(&f.rates[index].iter().map(|r| r.per_second).collect::<Vec<_>>());
        let spread = |f: &Figures| {
            let rates: Vec<f64> = f.rates[index].iter().map(|r| r.per_cpu).collect();
            100.0 * (table::quantile(&rates, 1.0) - table::quantile(&rates, 0.0)) / rate(f)
        };
        let (share, times) = if shape.batch > 1 { ("0.70 or more", "ratio 3 or more") } else { ("", "") };
        rows.extend([
            Row::new(format!("{shape}: SVIDs per second"), 0, column(&wall), ""),
            Row::new(format!("{shape}: SVIDs per CPU-second"), 0, column(&rate), times),
        ]);
        // For a token no signature is verified.
        if shape.kind == Kind::X509 {
            let of_limit = column(&|f| rate(f) / f.raw);
            rows.push(Row::new(format!("{shape}: share of the library's limit"), 2, of_limit, share));
        }
        rows.push(Row::new(format!("{shape}: spread of {SLICES} slices, percent"), 1, column(&spread), ""));
    }
    rows.push(Row::new("server memory after it, MiB", 1, column(&|f| f.memory.now), "ratio 0.25 or less"));
    rows.push(Row::new("server memory at its peak, MiB", 1, column(&|f| f.memory.peak), ""));
    let names: Vec<&str> = programs.iter().map(|one| one.name).collect();
    table::print(&format!("SVIDs signed on one core, {ENTRIES} entries"), &names, &rows);
    Ok(())
}

/// Of one program.
struct Figures {
    /// Verify + sign per CPU-second, the mean of just before and just after.
    raw: f64,
    /// For each shape the slices.
    rates: Vec<Vec<Rate>>,
    memory: estate::Memory,
}

struct Rate {
    per_second: f64,
    per_cpu: f64,
}

async fn measure(programs: &Programs, core: usize, shapes: &[Shape], csrs: &[Vec<u8>]) -> Outcome<Figures> {
    let before = raw_rate(core)?;
    println!("{}: starting, {ENTRIES} entries", programs.name);
    let estate = Estate::start(programs, Some(core)).await?;
    let (token, agent_path) = estate.admin.join_token().await?;
    let uids: Vec<u32> = (100_000..).take(ENTRIES).collect();
    let entry_ids = estate.admin.create_entries(&agent_path, &uids).await?;
    let asker =
        Asker { channel: attest(&estate, token).await?, clock: Clock::wall(), entry_ids: &entry_ids, csrs };
    asker.until_known().await?;
    let mut rates = Vec::new();
    for &shape in shapes {
        asker.ask(shape, WARM_UP).await?;
        let mut slices = Vec::new();
        for _ in 0..SLICES {
            let cpu = estate.server.cpu()?;
            let (signed, wall) = asker.ask(shape, SLICE).await?;
            let cpu = estate.server.cpu()? - cpu;
            let rate = |time: Duration| signed as f64 / time.as_secs_f64();
            slices.push(Rate { per_second: rate(wall), per_cpu: rate(cpu) });
        }
        rates.push(slices);
    }
    let memory = estate.server.memory()?;
    drop(estate);
    Ok(Figures { raw: (before + raw_rate(core)?) / 2.0, rates, memory })
}

/// An agent's side of the connection.
struct Asker<'a> {
    channel: Channel,
    clock: Clock,
    entry_ids: &'a [String],
    csrs: &'a [Vec<u8>],
}

impl Asker<'_> {
    /// Waits until the server knows every entry; the reference reloads them every five seconds.
    async fn until_known(&self) -> Outcome<()> {
        let begun = self.clock.monotonic();
        let last = Shape { kind: Kind::X509, batch: 1, at_once: 1 };
        let mut error = None;
        while self.clock.monotonic() - begun < Duration::from_secs(60) {
            match self.call(last, self.entry_ids.len() - 1).await {
                Ok(_) => return Ok(()),
                Err(other) => error = Some(other),
            }
            self.clock.sleep(Duration::from_millis(200)).await;
        }
        Err(error.unwrap_or_else(|| "the entries do not appear".into()))
    }

    /// Asks for so long; how many were signed, and in what time.
    async fn ask(&self, shape: Shape, time: Duration) -> Outcome<(usize, Duration)> {
        let begun = self.clock.monotonic();
        let lanes = (0..shape.at_once).map(|lane| async move {
            let mut signed = 0;
            let mut next = lane * self.entry_ids.len() / shape.at_once;
            while self.clock.monotonic() - begun < time {
                signed += self.call(shape, next).await?;
                next += shape.batch;
            }
            Outcome::Ok(signed)
        });
        let signed = try_join_all(lanes).await?.into_iter().sum();
        Ok((signed, self.clock.monotonic() - begun))
    }

    async fn call(&self, shape: Shape, from: usize) -> Outcome<usize> {
        match shape.kind {
            Kind::X509 => self.certificates(shape.batch, from).await,
            Kind::Jwt => self.token(from).await,
        }
    }

    async fn token(&self, index: usize) -> Outcome<usize> {
        let request = svid::NewJwtsvidRequest {
            entry_id: self.entry_ids[index % self.entry_ids.len()].clone(),
            audience: vec!["https://audience.bench.test".to_owned()],
        };
        let mut client = svid::svid_client::SvidClient::new(self.channel.clone());
        match client.new_jwtsvid(request).await?.into_inner().svid {
            Some(svid) if !svid.token.is_empty() => Ok(1),
            other => Err(format!("a token was not signed: {other:?}").into()),
        }
    }

    async fn certificates(&self, batch: usize, from: usize) -> Outcome<usize> {
        let param = |index: usize| svid::NewX509svidParams {
            entry_id: self.entry_ids[index % self.entry_ids.len()].clone(),
            csr: self.csrs[index % self.csrs.len()].clone(),
        };
        let request = svid::BatchNewX509svidRequest { params: (from..from + batch).map(param).collect() };
        let mut client = svid::svid_client::SvidClient::new(self.channel.clone());
        let results = client.batch_new_x509svid(request).await?.into_inner().results;
        for result in &results {
            match (&result.status, &result.svid) {
                (Some(types::Status { code: 0, .. }), Some(svid)) if !svid.cert_chain.is_empty() => {}
                (status, _) => return Err(format!("an SVID was not signed: {status:?}").into()),
            }
        }
        Ok(results.len())
    }
}

/// Joins as an agent and connects with its SVID.
async fn attest(estate: &Estate<'_>, token: String) -> Outcome<Channel> {
    let authorities = estate.admin.bundle().await?;
    let dialer = Dialer::tcp("127.0.0.1", estate.port);
    let anonymous = tls(&authorities, None)?;
    let channel = dial::connect(dialer.clone(), Some(dial::fixed(anonymous)), "localhost").await?;
    let key = WorkloadKey::generate(KeyType::EcP256)?;
    let params = agent::attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".to_owned(), payload: token.into_bytes() }),
        params: Some(agent::AgentX509svidParams { csr: key.csr(&spire_subject(), &[])? }),
    };
    let step = Some(agent::attest_agent_request::Step::Params(params));
    let requests = tokio_stream::iter([agent::AttestAgentRequest { step }]);
    let answers = agent::agent_client::AgentClient::new(channel).attest_agent(requests).await?;
    let result = match answers.into_inner().message().await?.and_then(|answer| answer.step) {
        Some(agent::attest_agent_response::Step::Result(result)) => result,
        other => return Err(format!("attestation gave {other:?}").into()),
    };
    let chain = result.svid.ok_or("attestation gave no SVID")?.cert_chain;
    let presenting = tls(&authorities, Some((chain, key)))?;
    Ok(dial::connect(dialer, Some(dial::fixed(presenting)), "localhost").await?)
}

fn tls(authorities: &[Vec<u8>], own: Option<(Vec<Vec<u8>>, WorkloadKey)>) -> Outcome<Arc<ClientConfig>> {
    let provider = Arc::new(provider::default_provider());
    let verifier = SpiffeVerifier { authorities: authorities.to_vec(), provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
            builder.with_client_auth_cert(chain.into_iter().map(CertificateDer::from).collect(), key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts the trust domain's server.
struct SpiffeVerifier {
    authorities: Vec<Vec<u8>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(above).cloned().collect();
        let refused = |error: &dyn fmt::Display| rustls::Error::General(error.to_string());
        let svid =
            peer::verify(&chain, &self.authorities, Clock::wall().now()).map_err(|error| refused(&error))?;
        let expected = format!("spiffe://{TRUST_DOMAIN}/spire/server");
        if svid.id().as_str() == expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(&format_args!("the peer is {}, not {expected}", svid.id())))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SpiffeVerifier").finish_non_exhaustive()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::X509 => write!(out, "X.509, {} a call, {} calls at once", self.batch, self.at_once),
            Kind::Jwt => write!(out, "JWT, {} calls at once", self.at_once),
        }
    }
}

fn csr() -> Outcome<Vec<u8>> {
    Ok(WorkloadKey::generate(KeyType::EcP256)?.csr(&spire_subject(), &[])?)
}

/// The library's limit, measured by this program as a child on the core that is measured.
fn raw_rate(core: usize) -> Outcome<f64> {
    let output = estate::pinned(&std::env::current_exe()?, Some(core)).arg(RAW).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Prints how often in a CPU-second a signature is verified with a key that has to be read, and one is made.
fn raw() -> Outcome<()> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| "no key")?;
    let message = [7; MESSAGE];
    let signature = key.sign(&random, &message).map_err(|_| "no signature")?;
    let begun = estate::cpu_of("self")?;
    let (mut done, mut spent) = (0_u32, Duration::ZERO);
    while spent < RAW_TIME {
        for _ in 0..100 {
            let public_key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref());
            public_key.verify(&message, signature.as_ref()).map_err(|_| "a good signature was refused")?;
            std::hint::black_box(key.sign(&random, &message).map_err(|_| "no signature")?);
        }
        done += 100;
        spent = estate::cpu_of("self")? - begun;
    }
    println!("{}", f64::from(done) / spent.as_secs_f64());
    Ok(())
}
