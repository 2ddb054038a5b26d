//! The tasks of a program: started by name, watched, stopped together.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks may take to finish once they are asked to stop.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Raises this process's limit on open files as far as it may itself. Shells and containers often start programs with
/// 1024, which is few for connections, and the first that a stranger who opens many would use up.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    match raised {
        Ok(()) => tracing::debug!(from = limit.current, to = limit.maximum, "Limit on open files raised"),
        Err(error) => tracing::warn!(limit = limit.current, %error, "Cannot raise the limit on open files"),
    }
}

/// The running tasks of a program. Clones share one set.
#[derive(Clone, Debug)]
pub struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, Task>,
    /// Why the program cannot go on: the first failure counts, the others follow from it.
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Task {
    name: Cow<'static, str>,
    /// Unknown for the instant between the registration of a task and its start.
    abort: Option<AbortHandle>,
}

/// Why a program stopped without being asked to, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A task without which the program cannot go on returned although nobody asked it to stop.
    #[error("task {name:?} ended unexpectedly")]
    Ended {
        /// The task.
        name: String,
    },
    /// A task without which the program cannot go on failed.
    #[error("task {name:?} failed: {source}")]
    Failed {
        /// The task.
        name: String,
        /// What it returned.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A task panicked: a defect in this program.
    #[error("task {name:?} panicked: {message}")]
    Panicked {
        /// The task.
        name: String,
        /// The panic's message.
        message: String,
    },
    /// These tasks did not finish within the limit and were cut off.
    #[error("these tasks did not stop within {limit:?} and were cut off: {}", names.join(", "))]
    StillRunning {
        /// The tasks.
        names: Vec<String>,
        /// How long they were given.
        limit: Duration,
    },
}

/// A signal that asks the program to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, Ctrl-C in a terminal.
    Interrupt,
    /// SIGTERM, what service managers send.
    Terminate,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Tasks {
        let shared = Shared {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            running: Mutex::new(Running::default()),
        };
        Tasks { shared: Arc::new(shared) }
    }

    /// The token that is cancelled when the tasks are to stop. Tasks wait for it beside their work.
    pub fn stop_token(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Starts a task that may end when it likes. A panic in it is logged with the task's name; the other
    /// tasks go on.
    pub fn spawn(&self, name: impl Into<Cow<'static, str>>, work: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        self.start(name.clone(), async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                tracing::error!(task = %name, error = %panic_message(&*panic), "Task panicked");
            }
        });
    }

    /// Starts a task without which the program cannot go on. When it returns or panics before a stop was
    /// asked for, all tasks are asked to stop and [`Tasks::run_until`] returns the reason.
    pub fn spawn_critical<E>(
        &self,
        name: impl Into<Cow<'static, str>>,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static,
    {
        let name = name.into();
        let shared = self.shared.clone();
        self.start(name.clone(), async move {
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            let name = name.into_owned();
            let failure = match outcome {
                Ok(Ok(())) if shared.stop.is_cancelled() => return,
                Ok(Ok(())) => Failure::Ended { name },
                Ok(Err(source)) => Failure::Failed { name, source: source.into() },
                Err(panic) => Failure::Panicked { name, message: panic_message(&*panic) },
            };
            tracing::error!(error = %failure, "Critical task is gone");
            shared.fail(failure);
        });
    }

    /// Runs until `stop` completes or a critical task is gone, then stops everything within
    /// [`STOP_LIMIT`]. The first failure is the error.
    pub async fn run_until(&self, stop: impl Future) -> Result<(), Failure> {
        tokio::select! {
            _ = stop => {}
            () = self.shared.stop.cancelled() => {}
        }
        self.shutdown().await
    }

    /// Asks all tasks to stop and waits for them, for at most [`STOP_LIMIT`]; those that are left are cut
    /// off. The error is the failure that ended the program, or else the list of those cut off.
    pub async fn shutdown(&self) -> Result<(), Failure> {
        self.shutdown_within(STOP_LIMIT).await
    }

    /// [`Tasks::shutdown`] with another limit.
    pub async fn shutdown_within(&self, limit: Duration) -> Result<(), Failure> {
        self.shared.stop.cancel();
        self.shared.tracker.close();
        let late = match tokio::time::timeout(limit, self.shared.tracker.wait()).await {
            Ok(()) => None,
            Err(_) => Some(self.cut_off(limit)),
        };
        let first = self.shared.lock().failure.take();
        match first.or(late) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// The names of the tasks that run now, oldest first.
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().tasks.values().map(|task| task.name.to_string()).collect()
    }

    fn start(&self, name: Cow<'static, str>, work: impl Future<Output = ()> + Send + 'static) {
        let ticket = self.shared.register(name);
        let on_end = Deregister { shared: self.shared.clone(), ticket };
        let handle = self.shared.tracker.spawn(async move {
            let _on_end = on_end;
            work.await;
        });
        // Gone already when the task has ended.
        if let Some(task) = self.shared.lock().tasks.get_mut(&ticket) {
            task.abort = Some(handle.abort_handle());
        }
    }

    fn cut_off(&self, limit: Duration) -> Failure {
        let running = self.shared.lock();
        let names = running.tasks.values().map(|task| task.name.to_string()).collect();
        running.tasks.values().filter_map(|task| task.abort.as_ref()).for_each(AbortHandle::abort);
        Failure::StillRunning { names, limit }
    }
}

impl Default for Tasks {
    fn default() -> Tasks {
        Tasks::new()
    }
}

/// Waits for SIGINT or SIGTERM. The program no longer dies of these signals from the moment this returns;
/// the future it returns completes at the first one.
pub fn signals() -> io::Result<impl Future<Output = Signal>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        let signal = tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        };
        tracing::info!(%signal, "Asked to stop");
        signal
    })
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Interrupt => "SIGINT",
            Signal::Terminate => "SIGTERM",
        })
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, name: Cow<'static, str>) -> u64 {
        let mut running = self.lock();
        let ticket = running.next;
        running.next += 1;
        running.tasks.insert(ticket, Task { name, abort: None });
        ticket
    }

    fn fail(&self, failure: Failure) {
        self.lock().failure.get_or_insert(failure);
        self.stop.cancel();
    }
}

struct Deregister {
    shared: Arc<Shared>,
    ticket: u64,
}

impl Drop for Deregister {
    fn drop(&mut self) {
        self.shared.lock().tasks.remove(&self.ticket);
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is full")]
    struct DiskFull;

    type Never = std::convert::Infallible;

    #[tokio::test(start_paused = true)]
    async fn stops_everything_when_asked() {
        let tasks = Tasks::new();
        let (asked, stop) = tokio::sync::oneshot::channel::<()>();
        for name in ["one", "two"] {
            let token = tasks.stop_token();
            tasks.spawn_critical(name, async move {
                token.cancelled().await;
                Ok::<_, Never>(())
            });
        }
        tasks.spawn("short", async {});
        tokio::task::yield_now().await;
        assert_eq!(tasks.names(), ["one", "two"]);
        asked.send(()).unwrap();
        tasks.run_until(stop).await.unwrap();
        assert!(tasks.names().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_critical_task_stops_the_program_with_its_name_and_cause() {
        let tasks = Tasks::new();
        let token = tasks.stop_token();
        tasks.spawn_critical("other", async move {
            token.cancelled().await;
            Ok::<_, Never>(())
        });
        tasks.spawn_critical("entries feed", async { Err(DiskFull) });
        let failure = tasks.run_until(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(failure.to_string(), "task \"entries feed\" failed: the disk is full");
    }

    #[tokio::test(start_paused = true)]
    async fn a_critical_task_that_just_ends_stops_the_program() {
        let tasks = Tasks::new();
        tasks.spawn_critical("listener", async { Ok::<_, Never>(()) });
        let failure = tasks.run_until(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(failure.to_string(), "task \"listener\" ended unexpectedly");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_in_a_critical_task_stops_the_program_with_its_message() {
        let tasks = Tasks::new();
        let rows = 3;
        tasks.spawn_critical("rotation", async move {
            assert_eq!(rows, 4, "slots");
            Ok::<_, Never>(())
        });
        let failure = tasks.run_until(std::future::pending::<()>()).await.unwrap_err().to_string();
        assert!(failure.starts_with("task \"rotation\" panicked: "), "{failure}");
        assert!(failure.contains("slots"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_elsewhere_leaves_the_program_running() {
        let tasks = Tasks::new();
        tasks.spawn("connection", async { panic!("on purpose") });
        let token = tasks.stop_token();
        tasks.spawn_critical("listener", async move {
            token.cancelled().await;
            Ok::<_, Never>(())
        });
        while tasks.names() != ["listener"] {
            tokio::task::yield_now().await;
        }
        assert!(!tasks.stop_token().is_cancelled());
        tasks.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_stop_in_time_is_named_and_cut_off() {
        let tasks = Tasks::new();
        let (alive, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        tasks.spawn("deaf", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        let failure = tasks.shutdown().await.unwrap_err();
        assert!(matches!(&failure, Failure::StillRunning { names, limit }
            if *names == ["deaf"] && *limit == STOP_LIMIT));
        assert_eq!(gone.recv().await, None, "the task was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_while_stopping_is_still_reported() {
        let tasks = Tasks::new();
        let token = tasks.stop_token();
        tasks.spawn_critical("store", async move {
            token.cancelled().await;
            Err(DiskFull)
        });
        let failure = tasks.shutdown().await.unwrap_err();
        assert_eq!(failure.to_string(), "task \"store\" failed: the disk is full");
    }

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[tokio::test]
    async fn a_termination_signal_is_noticed() {
        let signal = signals().unwrap();
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(signal.await, Signal::Terminate);
    }
}
