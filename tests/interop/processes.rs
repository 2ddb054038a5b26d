//! What happens to processes: they are killed, stopped, started twice, and their numbers are used again.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, ListEntriesRequest};
use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use finial_server::store::{OpenSettings, Store};
use finial_tests::real::Programs;
use finial_tests::world::{Workload, id, trust_domain};
use hyper_util::rt::TokioIo;
use spiffe::X509Source;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed three times in the middle of entries and signatures: what was acknowledged is there, the trust is the same,
/// the agent and its workloads go on, and the log of what was issued holds together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_its_word() {
    let mut programs = Programs::started().await;
    programs.register("steady", |_| {}).await;
    let mut updates = programs.workload().open().await;
    assert_eq!(updates.next(&Clock::wall()).await.names(), ["steady"]);
    let trust = bundle(&programs).await;

    for round in 0..3 {
        let burst = Burst::begin(&programs, round);
        burst.progressed().await;
        programs.kill_server();
        let acknowledged = burst.end().await;
        programs.start_server().await;

        let list = ListEntriesRequest::default();
        let entries =
            EntryClient::new(programs.admin()).list_entries(list).await.unwrap().into_inner().entries;
        for id in &acknowledged {
            assert!(entries.iter().any(|entry| entry.id == *id), "entry {id} was acknowledged and is gone");
        }
        assert_eq!(bundle(&programs).await, trust, "neither a second CA nor another trust");
    }
    programs.register("after", |_| {}).await;
    let context = updates.until(&Clock::wall(), |context| context.names() == ["after", "steady"]).await;
    assert_eq!(context.bundle.len(), 1);

    assert_eq!(programs.stop_server().await.code(), Some(0));
    let file = programs.path("datastore.sqlite3");
    let settings = OpenSettings::new(file.to_str().unwrap(), trust_domain(), Clock::wall());
    let issued = Store::open(settings).await.unwrap().issued().verify().await.unwrap();
    assert!(issued.rows > 0);
}

async fn bundle(programs: &Programs) -> types::Bundle {
    let request = GetBundleRequest::default();
    BundleClient::new(programs.admin()).get_bundle(request).await.unwrap().into_inner()
}

/// Callers that create entries and have certificates signed until the server is gone.
struct Burst {
    callers: Vec<tokio::task::JoinHandle<()>>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    /// (entries, signatures)
    done: watch::Receiver<(u32, u32)>,
}

impl Burst {
    fn begin(programs: &Programs, round: u32) -> Burst {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (count, done) = watch::channel((0, 0));
        let count = Arc::new(count);
        let mut callers = Vec::new();
        for writer in 0..3 {
            let (channel, acknowledged, count) = (programs.admin(), acknowledged.clone(), count.clone());
            callers.push(tokio::spawn(async move {
                for number in 0.. {
                    let entry = types::Entry {
                        spiffe_id: Some(id(&format!("burst/{round}/{writer}/{number}"))),
                        parent_id: Some(id("elsewhere")),
                        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
                        ..types::Entry::default()
                    };
                    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
                    let answer = EntryClient::new(channel.clone()).batch_create_entry(request).await;
                    let Ok(answer) = answer else { return };
                    let created = answer.into_inner().results.remove(0).entry.unwrap();
                    acknowledged.lock().unwrap().push(created.id);
                    count.send_modify(|(entries, _)| *entries += 1);
                }
            }));
        }
        let (channel, key) = (programs.admin(), WorkloadKey::generate(KeyType::EcP256).unwrap());
        callers.push(tokio::spawn(async move {
            let csr = key.csr(&spire_subject(), &["spiffe://example.org/minted"]).unwrap();
            loop {
                let request = MintX509svidRequest { csr: csr.clone(), ttl: 0 };
                if SvidClient::new(channel.clone()).mint_x509svid(request).await.is_err() {
                    return;
                }
                count.send_modify(|(_, signatures)| *signatures += 1);
            }
        }));
        Burst { callers, acknowledged, done }
    }

    async fn progressed(&self) {
        let mut done = self.done.clone();
        let enough = done.wait_for(|(entries, signatures)| *entries >= 30 && *signatures >= 10);
        tokio::time::timeout(PATIENCE, enough).await.expect("the server works").unwrap();
    }

    /// The entries that were acknowledged until the server went away.
    async fn end(self) -> Vec<String> {
        for caller in self.callers {
            tokio::time::timeout(PATIENCE, caller).await.expect("calls to a dead server end").unwrap();
        }
        self.acknowledged.lock().unwrap().clone()
    }
}

/// U52: the agent comes back on the same socket without a token, and a client library finds it by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_is_back_without_a_token() {
    let mut programs = Programs::started().await;
    programs.register("web", |_| {}).await;
    programs.workload().open().await;
    let source = X509Source::builder().endpoint(programs.endpoint()).build();
    let source = tokio::time::timeout(PATIENCE, source).await.unwrap().unwrap();
    let before = source.svid().unwrap();
    let mut changes = source.updated();

    programs.kill_agent();
    assert!(source.svid().is_ok(), "what was fetched is still good");
    programs.restart_agent(None).await;
    programs.register("second", |_| {}).await;
    let both = async {
        while source.x509_context().map_or(0, |context| context.svids().len()) < 2 {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("the client recovers by itself");
    let svids = source.x509_context().unwrap().svids().to_vec();
    let web = svids.iter().find(|svid| svid.spiffe_id() == before.spiffe_id()).unwrap();
    assert_ne!(web.leaf().as_bytes(), before.leaf().as_bytes(), "workload keys do not outlive the agent");
    source.shutdown().await;
}

/// Both programs stop within ten seconds of SIGTERM though streams are open on them, and say so with exit code 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_stop_when_they_are_told() {
    let mut programs = Programs::started().await;
    programs.register("web", |_| {}).await;
    let mut updates = programs.workload().open().await;
    updates.next(&Clock::wall()).await;
    let clock = Clock::wall();

    // The agent's own stream is open on the server.
    let before = clock.monotonic();
    assert_eq!(programs.stop_server().await.code(), Some(0), "{}", programs.log("server.log"));
    assert!(clock.monotonic() - before < Duration::from_secs(10));
    assert!(programs.log("server.log").contains("Server stopped gracefully"));

    let before = clock.monotonic();
    assert_eq!(programs.stop_agent().await.code(), Some(0), "{}", programs.log("agent.log"));
    assert!(clock.monotonic() - before < Duration::from_secs(10));
    let end = updates.try_next(&clock).await.err().unwrap();
    assert_eq!(end.code(), Code::Unavailable, "{end}");
}

/// A data directory has one server and one agent; the second is told who has it, and disturbs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_has_one_program() {
    let programs = Programs::started().await;
    programs.register("web", |_| {}).await;
    let server = programs.server_configuration().replace("/server.sock", "/second.sock");
    let server = server.replace(&format!("bind_port = {}", programs.port()), "bind_port = 1");
    let agent = programs.agent_configuration().replace("/public/agent.sock", "/second/agent.sock");
    for (program, text, holder) in
        [("finial-server", server, programs.server_pid()), ("finial-agent", agent, programs.agent_pid())]
    {
        let file = programs.path("second.conf");
        std::fs::write(&file, text).unwrap();
        let ended = programs.run(program, &["run", "-config", file.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        let folder = programs.folder.path().display();
        for expected in [
            &format!("data_dir {folder}"),
            &format!("is in use by another {program} (process {holder})"),
            "a data_dir of its own",
        ] {
            assert!(said.contains(expected), "{expected:?} is not in: {said}");
        }
    }
    assert_eq!(programs.workload().fetch(&Clock::wall()).await.names(), ["web"]);
}

/// A data directory that cannot be written to, or not even be made, is named with what to do.
#[tokio::test]
async fn a_data_directory_that_is_of_no_use_is_named() {
    let programs = Programs::new(|_| String::new());
    let folder = programs.folder.path().display().to_string();
    for (program, text, own) in [
        ("finial-server", programs.server_configuration(), format!("data_dir = \"{folder}\"")),
        ("finial-agent", programs.agent_configuration(), format!("data_dir = \"{folder}/agent\"")),
    ] {
        // Nobody can write there, not even root.
        for unusable in ["/proc/finial", "/proc"] {
            let file = programs.path("bad.conf");
            let changed = text.replace(&own, &format!("data_dir = {unusable:?}"));
            assert_ne!(changed, text);
            std::fs::write(&file, changed).unwrap();
            let ended = programs.run(program, &["run", "-config", file.to_str().unwrap()]).await;
            let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
            assert_eq!(ended.status.code(), Some(1), "{said}");
            for expected in [&format!("cannot use data_dir {unusable}: "), "the right to write there"] {
                assert!(said.contains(expected), "{expected:?} is not in: {said}");
            }
        }
    }
}

/// U46: a connection speaks for the process that made it. When that one ends, whoever holds the connection gets nothing
/// more, not even when another process of the same user has its number.
///
/// The test runs itself again as a process of its own, which connects, passes the connection on, and is killed.
#[test]
fn a_connection_ends_with_its_process_whoever_has_the_number_next() {
    const ROLE: &str = "FINIAL_TEST_CONNECT_TO";
    const NAME: &str = "processes::a_connection_ends_with_its_process_whoever_has_the_number_next";
    if let Ok(path) = std::env::var(ROLE) {
        let to_parent = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        send_descriptor(&to_parent, &UnixStream::connect(path).unwrap());
        // Until the parent kills this process.
        let _ = std::io::Read::read(&mut &to_parent, &mut [0]);
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let programs = Programs::started().await;
        programs.register("web", |_| {}).await;
        programs.workload().open().await;

        let (near, far) = UnixStream::pair().unwrap();
        let mut connected = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(ROLE, programs.path("public/agent.sock"))
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let keep = near.try_clone().unwrap();
        let passed = tokio::task::spawn_blocking(move || receive_descriptor(&near)).await.unwrap();
        let workload = Workload::over(over(UnixStream::from(passed)).await);
        let mut updates = workload.open().await;
        assert_eq!(updates.next(&Clock::wall()).await.names(), ["web"]);

        let number = connected.id();
        connected.kill().unwrap();
        connected.wait().unwrap();
        drop(keep);
        let successor = with_number(number);
        let ended = tokio::time::timeout(PATIENCE, updates.try_next(&Clock::wall())).await;
        assert!(ended.expect("the stream ends by itself").is_err());
        let again = tokio::time::timeout(PATIENCE, workload.try_open()).await.expect("an answer comes");
        assert!(again.is_err(), "the connection of a process that has ended was served");
        match successor {
            Some(mut successor) => {
                assert!(successor.try_wait().unwrap().is_none(), "the successor lived through it");
                successor.kill().unwrap();
                successor.wait().unwrap();
            }
            None => eprintln!("process IDs can not be chosen here; the successor was left out"),
        }
        // Others were not disturbed.
        assert_eq!(programs.workload().fetch(&Clock::wall()).await.names(), ["web"]);
    });
}

/// A process that has this number, where we may choose it.
fn with_number(number: u32) -> Option<Child> {
    for _ in 0..500 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).ok()?;
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        if child.id() == number {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    None
}

/// A channel over a connection that is there already.
async fn over(stream: UnixStream) -> Channel {
    stream.set_nonblocking(true).unwrap();
    let io = Mutex::new(Some(TokioIo::new(tokio::net::UnixStream::from_std(stream).unwrap())));
    let once = move |_| {
        let io = io.lock().unwrap().take();
        std::future::ready(io.ok_or_else(|| std::io::Error::other("the one connection was used")))
    };
    Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(once)).await.unwrap()
}

fn send_descriptor(to: &UnixStream, what: &UnixStream) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let descriptors = [what.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).unwrap();
}

fn receive_descriptor(from: &UnixStream) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(from.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            #[allow(unsafe_code, reason = "a descriptor that was just received belongs to nobody else")]
            return unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
        }
    }
    panic!("no descriptor came");
}
