//! Puts the server together: first everything is built, then everything runs.

pub mod checks;

use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::keys::counted;
use finial_daemon::listen::{self, Incoming};
use finial_daemon::metrics::Metrics;
use finial_daemon::ready::{Gate as Ready, Hold};
use finial_daemon::run::{Failure, Tasks};
use finial_daemon::settings::SettingsError;
use finial_daemon::telemetry::LogHandle;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::finial::watch::v1::watch_server::WatchServer;
use finial_proto::spire::api::server::agent::v1::agent_server::AgentServer;
use finial_proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use finial_proto::spire::api::server::debug::v1::debug_server::DebugServer;
use finial_proto::spire::api::server::entry::v1::entry_server::EntryServer;
use finial_proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use finial_proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use finial_proto::spire::api::server::svid::v1::svid_server::SvidServer;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use futures::future::BoxFuture;
use rustls::sign::CertifiedKey;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::pb::health_server::HealthServer;

use crate::access::handshake::{self, ForeignBundles, Trust};
use crate::access::limit::Limits;
use crate::agents::prune::{self, PruneSettings};
use crate::agents::standing::Standings;
use crate::api::gate::{Access, Door, Gate};
use crate::api::{
    agent, bundle, debug, entry, health, localauthority, logger, serve, svid, trust_domain, watch as watching,
};
use crate::authority::by_hand::ByHand;
use crate::authority::drive::Failures;
use crate::authority::expiry;
use crate::authority::issue::Issuer;
use crate::authority::profile::ProfileSettings;
use crate::authority::server_svid::ServerSvid;
use crate::authority::{Authority, AuthorityError, AuthorityParts, AuthoritySettings};
use crate::bundles::federated::FederatedBundles;
use crate::bundles::own::OwnBundle;
use crate::entries::feed::Feed;
use crate::plugins::key_manager::KeyManagerError;
use crate::plugins::node_attestor::{Host, NodeAttestors};
use crate::plugins::{key_manager, upstream_authority};
use crate::settings::Settings;
use crate::store::issued::{Batching, IssuedLog};
use crate::store::{Change, OpenSettings, Store, StoreError};

/// After this time a connection from the network takes no new calls, so that clients come to see new addresses.
const CONNECTION_AGE: Duration = Duration::from_secs(3 * 60);
/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// The KeyManager's calls.
const KEY_WORDS: counted::Words = counted::Words {
    generate: &["server_key_manager", "generate_key"],
    get: &["server_key_manager", "get_public_key"],
    list: &["server_key_manager", "get_public_keys"],
};
/// Bytes of a message from somebody without an identity: evidence of any attestor and a CSR, and a mask.
const STRANGERS_EVIDENCE: usize = 256 * 1024;
const STRANGERS_QUESTION: usize = 16 * 1024;
/// Agents that lose their standing at one moment before a stream has looked; beyond that, all streams look.
const CUT_OFF_BACKLOG: usize = 256;

/// What the server has from outside.
pub struct Surroundings {
    pub clock: Clock,
    /// Connections from the network, TLS to come.
    pub api: Incoming,
    /// Connections to the admin socket.
    pub admin: Incoming,
    /// The log whose level the Logger service changes.
    pub log: LogHandle,
    pub metrics: Metrics,
}

/// A server that has a CA and an SVID, and does not serve yet.
pub struct Built {
    pub handles: Handles,
    /// Open once both listeners are served.
    pub ready: Ready,
    /// Serves until `handles.stop` is cancelled or a part fails; dropping it stops everything.
    pub task: BoxFuture<'static, Result<(), RunError>>,
}

/// The parts of a running server, for tests and benchmarks.
#[derive(Clone)]
pub struct Handles {
    pub store: Store,
    pub feed: Feed,
    pub issuer: Issuer,
    pub by_hand: ByHand,
    pub own_bundle: OwnBundle,
    pub federated: FederatedBundles,
    pub server_svid: watch::Receiver<Arc<ServerSvid>>,
    pub issued: IssuedLog,
    pub log: LogHandle,
    /// How the rotation of each kind of authority fares.
    pub rotations: Vec<Failures>,
    /// Cancelling it ends the server within about ten seconds.
    pub stop: CancellationToken,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{0}")]
    Settings(#[from] SettingsError),
    #[error("cannot open the DataStore: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    KeyManager(#[from] KeyManagerError),
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a running server ended although nobody asked it to, or did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Task(#[from] Failure),
    #[error("the last entries of the log of issued credentials could not be written: {0}")]
    Issued(StoreError),
}

/// Builds the server. When this returns it has a CA, an SVID and everything that it serves in memory.
pub async fn build(settings: Settings, around: Surroundings) -> Result<Built, BuildError> {
    let Surroundings { clock, api, admin, log, metrics } = around;
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("trust_domain_id", settings.trust_domain.name())];
    metrics.gauge_with(&["started"], 1.0, &labels);
    let stanzas = &settings.plugins.stanzas;
    let trust_domain = settings.trust_domain.clone();

    let keys = key_manager::choose(stanzas)?;
    let core = upstream_authority::Core { trust_domain: trust_domain.clone(), clock: clock.clone() };
    let upstream = upstream_authority::build(stanzas, core)?;
    let store = Store::open(OpenSettings {
        database: settings.plugins.datastore.clone(),
        trust_domain: trust_domain.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
    })
    .await?;
    let host = Host { trust_domain: trust_domain.clone(), store: store.clone(), clock: clock.clone() };
    let attestors = NodeAttestors::configure(stanzas, &host)?;

    let (issued, write_issued) = IssuedLog::start(store.clone(), Batching::default());
    let own_bundle = OwnBundle::load(store.clone()).await?;
    let authority = Authority::build(
        AuthoritySettings {
            profile: ProfileSettings {
                ca_subject: settings.ca_subject.clone(),
                ca_ttl: settings.ca_ttl,
                x509_svid_ttl: settings.default_x509_svid_ttl,
                agent_ttl: Some(settings.agent_ttl),
                jwt_svid_ttl: settings.default_jwt_svid_ttl,
                jwt_issuer: settings.jwt_issuer.clone(),
                ..ProfileSettings::new(trust_domain.clone())
            },
            ca_key_type: settings.ca_key_type,
            jwt_key_type: (!settings.disable_jwt_svids).then_some(settings.jwt_key_type),
        },
        AuthorityParts {
            clock: clock.clone(),
            store: store.clone(),
            keys: counted::counted(keys.open().await?, metrics.clone(), KEY_WORDS),
            upstream,
            bundle: own_bundle.clone(),
            issued: issued.clone(),
        },
    )
    .await?;

    let (feed, follow) = Feed::open(store.clone(), clock.clone(), settings.feed).await?;
    let federated = FederatedBundles::load(store.clone()).await?;
    let foreign = ForeignBundles::new(&settings.admin_ids, &trust_domain);
    foreign.refresh(&store).await?;

    let tasks = Tasks::new();
    let stop = tasks.stop_token();
    let handles = Handles {
        store: store.clone(),
        feed: feed.clone(),
        issuer: authority.issuer.clone(),
        by_hand: authority.by_hand.clone(),
        own_bundle: own_bundle.clone(),
        federated: federated.clone(),
        server_svid: authority.server_svid.clone(),
        issued: issued.clone(),
        log,
        rotations: authority.rotations.clone(),
        stop: stop.clone(),
    };
    let standings = Standings::new(store.clone(), clock.clone());
    let access = Arc::new(Access {
        standings: standings.clone(),
        feed: feed.clone(),
        admin_ids: settings.admin_ids.clone(),
        limits: Limits::new(clock.clone(), settings.rate_limits),
        audit: settings.audit_log_enabled,
        metrics: metrics.clone(),
        clock: clock.clone(),
    });
    let Services { all, for_strangers } = services(&settings, &handles, attestors, &standings, &clock);
    let network_gate =
        Gate::new(all.clone().routes(), for_strangers.clone(), Door::Network, Arc::clone(&access));
    let admin_gate = Gate::new(admin_services(all, &handles, &clock), for_strangers, Door::Admin, access);

    let (shown, server_svid) = watch::channel(Some(certified(&authority.server_svid)));
    let trust = Trust {
        own: own_bundle.subscribe(),
        foreign: foreign.clone(),
        admin_ids: settings.admin_ids.clone().into(),
        clock: clock.clone(),
    };
    let tls = handshake::server_config(server_svid, trust, settings.require_pq_kem)?;
    let pruning =
        PruneSettings { events_older_than: settings.prune_events_older_than, nodes: settings.prune_nodes };

    let ready = Ready::new();
    let listening = ready.hold("listeners");
    let parts = Parts {
        standings,
        tasks,
        stop,
        clock,
        listening,
        issued,
        reload: settings.feed.reload,
        own_bundle,
        federated,
        foreign,
        store,
        feed,
        pruning,
        authority,
        shown,
        tls,
        api,
        admin,
        network_gate,
        admin_gate,
    };
    let task = Box::pin(run(parts, Box::pin(write_issued), follow.run()));
    Ok(Built { handles, ready, task })
}

struct Parts {
    standings: Standings,
    tasks: Tasks,
    stop: CancellationToken,
    clock: Clock,
    listening: Hold,
    issued: IssuedLog,
    reload: Duration,
    own_bundle: OwnBundle,
    federated: FederatedBundles,
    foreign: ForeignBundles,
    store: Store,
    feed: Feed,
    pruning: PruneSettings,
    authority: Authority,
    shown: watch::Sender<Option<Arc<CertifiedKey>>>,
    tls: Arc<rustls::ServerConfig>,
    api: Incoming,
    admin: Incoming,
    network_gate: Gate,
    admin_gate: Gate,
}

async fn run(
    parts: Parts,
    write_issued: BoxFuture<'static, ()>,
    follow: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let Parts { tasks, stop, clock, reload, .. } = parts;
    let _stop_on_drop = stop.clone().drop_guard();
    // Outlives the other tasks: they still sign while they end.
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn(write_issued);

    let spawn = |name: &'static str, work: BoxFuture<'static, ()>| {
        let stop = stop.clone();
        tasks.spawn_critical(name, async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
            Ok::<(), Failure>(())
        });
    };
    spawn("authorities", Box::pin(parts.authority.turning.run()));
    let metrics = parts.store.metrics().clone();
    let (federated, server_svid) = (parts.federated.subscribe(), parts.authority.server_svid.clone());
    let expiry = expiry::show(metrics, parts.own_bundle.subscribe(), federated, server_svid);
    spawn("expiry of authorities", Box::pin(expiry));
    spawn("server SVID", Box::pin(show_svid(parts.authority.server_svid, parts.shown)));
    spawn("entries", Box::pin(follow));
    let (feed, own_bundle, federated) =
        (parts.feed.clone(), parts.own_bundle.clone(), parts.federated.clone());
    let on_change = move |change| match change {
        Change::Rows => feed.poke(),
        Change::Bundles => {
            own_bundle.poke();
            federated.poke();
        }
    };
    spawn("own bundle", Box::pin(parts.own_bundle.run(clock.clone(), reload)));
    spawn("federated bundles", Box::pin(parts.federated.run(clock.clone(), reload)));
    if parts.foreign.is_needed() {
        spawn(
            "bundles of foreign administrators",
            Box::pin(parts.foreign.follow(parts.store.clone(), clock.clone())),
        );
    }
    spawn("standing of agents", Box::pin(parts.standings.follow(parts.feed.clone())));
    spawn("notifications", Box::pin(parts.store.clone().listen(on_change)));
    spawn("pruning", Box::pin(prune::run(parts.store, parts.feed, clock.clone(), parts.pruning)));

    let network = listen::tls::accept(parts.api, parts.tls, HANDSHAKE_TIMEOUT, clock.clone());
    let network =
        serve::serve(network, parts.network_gate, Some(CONNECTION_AGE), clock.clone(), stop.clone());
    tasks.spawn_critical("network API", until_told(network, stop.clone()));
    let admin = listen::plain(parts.admin);
    let admin = serve::serve(admin, parts.admin_gate, None, clock.clone(), stop.clone());
    tasks.spawn_critical("admin API", until_told(admin, stop.clone()));
    parts.listening.done();

    stop.cancelled().await;
    let ended = tasks.shutdown_within(serve::GRACE + Duration::from_secs(2)).await;
    let written = parts.issued.flush().await;
    ended?;
    written.map_err(RunError::Issued)
}

/// A listener that ends by itself is one less way to reach the server; the other goes on.
async fn until_told(served: impl Future<Output = ()>, stop: CancellationToken) -> Result<(), Failure> {
    served.await;
    stop.cancelled().await;
    Ok(())
}

/// Hands each new server SVID to the TLS listener.
async fn show_svid(
    mut server_svid: watch::Receiver<Arc<ServerSvid>>,
    shown: watch::Sender<Option<Arc<CertifiedKey>>>,
) {
    loop {
        shown.send_replace(Some(certified(&server_svid)));
        if server_svid.changed().await.is_err() {
            return;
        }
    }
}

fn certified(server_svid: &watch::Receiver<Arc<ServerSvid>>) -> Arc<CertifiedKey> {
    Arc::clone(&server_svid.borrow().certified)
}

struct Services {
    /// What both listeners serve.
    all: RoutesBuilder,
    /// The part of it that is open to anybody.
    for_strangers: Routes,
}

fn services(
    settings: &Settings,
    handles: &Handles,
    attestors: NodeAttestors,
    standings: &Standings,
    clock: &Clock,
) -> Services {
    let Handles { store, feed, issuer, by_hand, own_bundle, federated, stop, .. } = handles.clone();
    let trust_domain = settings.trust_domain.clone();
    let (cut_off, _) = broadcast::channel::<SpiffeId>(CUT_OFF_BACKLOG);
    let agents = agent::Agents {
        trust_domain: trust_domain.clone(),
        store: store.clone(),
        feed: feed.clone(),
        issuer: issuer.clone(),
        attestors,
        id_as_selector: settings.agent_spiffe_id_as_selector,
        cut_off: cut_off.clone(),
        clock: clock.clone(),
    };
    let bundles = bundle::Bundles {
        trust_domain: trust_domain.clone(),
        store: store.clone(),
        feed: feed.clone(),
        own: own_bundle.clone(),
        federated: federated.clone(),
    };
    let domains = trust_domain::TrustDomains {
        trust_domain: trust_domain.clone(),
        store: store.clone(),
        federated: federated.clone(),
    };
    let mut for_strangers = Routes::builder();
    for_strangers
        .add_service(AgentServer::new(agents.clone()).max_decoding_message_size(STRANGERS_EVIDENCE))
        .add_service(BundleServer::new(bundles.clone()).max_decoding_message_size(STRANGERS_QUESTION));
    let mut routes = Routes::builder();
    routes
        .add_service(AgentServer::new(agents))
        .add_service(EntryServer::new(entry::Entries {
            trust_domain: trust_domain.clone(),
            store: store.clone(),
            feed: feed.clone(),
        }))
        .add_service(SvidServer::new(svid::Svids {
            trust_domain,
            feed: feed.clone(),
            issuer,
            own_bundle: own_bundle.clone(),
            without_jwt: settings.disable_jwt_svids,
        }))
        .add_service(BundleServer::new(bundles))
        .add_service(WatchServer::new(watching::Watching {
            parts: Arc::new(watching::Parts {
                standings: standings.clone(),
                feed,
                own_bundle: own_bundle.clone(),
                federated,
                cut_off,
                epoch: watching::epoch(),
                clock: clock.clone(),
                stop,
            }),
        }))
        .add_service(TrustDomainServer::new(domains))
        .add_service(LocalAuthorityServer::new(localauthority::LocalAuthorities {
            by_hand,
            own: own_bundle,
        }));
    Services { all: routes, for_strangers: for_strangers.routes() }
}

/// What only the admin socket serves, beside the rest.
fn admin_services(mut routes: RoutesBuilder, handles: &Handles, clock: &Clock) -> Routes {
    let Handles { store, own_bundle, server_svid, log, .. } = handles.clone();
    routes
        .add_service(HealthServer::new(health::Healthy { store: store.clone() }))
        .add_service(DebugServer::new(debug::Debugger::new(store, own_bundle, server_svid, clock.clone())))
        .add_service(LoggerServer::new(logger::Loggers { log }));
    routes.routes()
}
