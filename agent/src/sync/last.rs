//! When the agent was last in step with its server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use finial_daemon::clock::Clock;

/// The end of the last successful synchronisation. Clones share it.
#[derive(Clone)]
pub struct LastSync {
    clock: Clock,
    at: Arc<Mutex<At>>,
}

#[derive(Clone, Copy)]
enum At {
    Never,
    Moment(SystemTime),
    /// The server pushes each change, so that the agent is in step all the time.
    Always,
}

/// While it lives, the agent follows its server.
pub struct Following(LastSync);

impl LastSync {
    pub fn new(clock: Clock) -> LastSync {
        LastSync { clock, at: Arc::new(Mutex::new(At::Never)) }
    }

    /// The moment; None when there was none yet.
    pub fn success(&self) -> Option<SystemTime> {
        match *self.at.lock().unwrap_or_else(PoisonError::into_inner) {
            At::Never => None,
            At::Moment(moment) => Some(moment),
            At::Always => Some(self.clock.now()),
        }
    }

    /// A poll has succeeded just now.
    pub fn polled(&self) {
        self.set(At::Moment(self.clock.now()));
    }

    /// The server's pushed changes have been taken over, and will be.
    pub fn following(&self) -> Following {
        self.set(At::Always);
        Following(self.clone())
    }

    fn set(&self, at: At) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.polled();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_follows_is_in_step_until_the_stream_breaks() {
        let clock = Clock::paused(UNIX_EPOCH);
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let last = LastSync::new(clock.clone());
        assert_eq!(last.success(), None);
        last.polled();
        clock.sleep(Duration::from_secs(10)).await;
        assert_eq!(last.success(), at(0));
        let following = last.following();
        clock.sleep(Duration::from_secs(10)).await;
        assert_eq!(last.success(), at(20));
        drop(following);
        clock.sleep(Duration::from_secs(10)).await;
        assert_eq!(last.success(), at(20));
    }
}
