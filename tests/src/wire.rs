//! An in-memory wire that outlives the listener at its end, so that a server can go away and come back.

use std::sync::{Arc, Mutex};

use finial_daemon::listen::{self, Accepted, Incoming, MemoryDialer};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Listener = mpsc::UnboundedSender<std::io::Result<Accepted>>;

/// A place that can be dialled at any time; connections are dropped while nobody listens.
#[derive(Clone)]
pub struct Wire {
    dialer: MemoryDialer,
    listener: Arc<Mutex<Option<Listener>>>,
}

impl Wire {
    /// A wire that nobody listens on yet. Needs a runtime.
    pub fn new() -> Wire {
        let (dialer, mut incoming) = listen::memory();
        let listener = Arc::new(Mutex::new(None::<Listener>));
        let current = listener.clone();
        tokio::spawn(async move {
            while let Some(accepted) = incoming.next().await {
                if let Some(listener) = &*current.lock().unwrap() {
                    // A listener that has stopped drops the connection, as the kernel would.
                    let _ = listener.send(accepted);
                }
            }
        });
        Wire { dialer, listener }
    }

    /// Listens; whoever listened before does not any more.
    pub fn listen(&self) -> Incoming {
        let (listener, accepted) = mpsc::unbounded_channel();
        *self.listener.lock().unwrap() = Some(listener);
        UnboundedReceiverStream::new(accepted).boxed()
    }

    /// Nobody listens from now on.
    pub fn hang_up(&self) {
        *self.listener.lock().unwrap() = None;
    }

    /// Connects.
    pub fn dialer(&self) -> MemoryDialer {
        self.dialer.clone()
    }
}

impl Default for Wire {
    fn default() -> Wire {
        Wire::new()
    }
}
