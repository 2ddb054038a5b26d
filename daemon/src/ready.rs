//! Readiness: a program is ready when everything it waits for has happened.
//!
//! Each thing waited for is a [`Hold`] on the [`Gate`]; whoever brings the thing about drops it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Says whether the program is ready, and what it still waits for. Clones share one state.
///
/// Take all holds before anybody looks: a gate that nothing holds is open.
#[derive(Clone, Debug)]
pub struct Gate {
    awaited: Arc<watch::Sender<Awaited>>,
}

#[derive(Debug, Default)]
struct Awaited {
    next: u64,
    names: BTreeMap<u64, &'static str>,
}

/// Keeps a [`Gate`] shut until it is dropped. A drop by an unwinding panic does not count: what was
/// waited for has not happened.
#[derive(Debug)]
#[must_use = "dropping the hold reports the thing it stands for as done"]
pub struct Hold {
    gate: Gate,
    ticket: u64,
}

impl Gate {
    /// A gate that nothing holds yet.
    pub fn new() -> Gate {
        Gate { awaited: Arc::new(watch::Sender::new(Awaited::default())) }
    }

    /// Shuts the gate until the returned hold is dropped. `name` is what operators are told is awaited.
    pub fn hold(&self, name: &'static str) -> Hold {
        let mut ticket = 0;
        self.awaited.send_modify(|awaited| {
            ticket = awaited.next;
            awaited.next += 1;
            awaited.names.insert(ticket, name);
        });
        Hold { gate: self.clone(), ticket }
    }

    /// True when nothing is awaited any more.
    pub fn is_ready(&self) -> bool {
        self.awaited.borrow().names.is_empty()
    }

    /// The names of what is still awaited, in the order the holds were taken.
    pub fn awaiting(&self) -> Vec<&'static str> {
        self.awaited.borrow().names.values().copied().collect()
    }

    /// Waits until nothing is awaited.
    pub async fn wait(&self) {
        let mut awaited = self.awaited.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = awaited.wait_for(|awaited| awaited.names.is_empty()).await;
    }
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::new()
    }
}

impl Hold {
    /// Reports the thing as done; the same as dropping the hold, said aloud.
    pub fn done(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.gate.awaited.send_modify(|awaited| {
                awaited.names.remove(&self.ticket);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn opens_when_the_last_hold_is_gone() {
        let gate = Gate::new();
        let bundle = gate.hold("bundle");
        let sync = gate.hold("first sync");
        assert!(!gate.is_ready());
        assert_eq!(gate.awaiting(), ["bundle", "first sync"]);
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.wait().await }
        });
        drop(bundle);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(gate.awaiting(), ["first sync"]);
        sync.done();
        waiting.await.unwrap();
        assert!(gate.is_ready());
        gate.wait().await;
    }

    #[tokio::test]
    async fn can_be_shut_again() {
        let gate = Gate::default();
        assert!(gate.is_ready());
        let again = gate.hold("database");
        assert!(!gate.is_ready());
        drop(again);
        assert!(gate.is_ready());
    }

    #[tokio::test]
    async fn a_task_that_panics_does_not_report_readiness() {
        let gate = Gate::new();
        let hold = gate.hold("cache");
        let task = tokio::spawn(async move {
            let _hold = hold;
            panic!("on purpose");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(gate.awaiting(), ["cache"]);
    }
}
