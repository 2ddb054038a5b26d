//! A limit that a flood cannot turn against others.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

/// So many tasks for strangers at one time. One more makes the oldest go: those who come in good faith are done before
/// it is their turn, those who hold on are what is dropped. To make newcomers wait instead would let whoever holds on
/// keep everybody out.
pub struct Newest {
    limit: usize,
    tasks: VecDeque<AbortHandle>,
}

impl Newest {
    /// None yet, and at most `limit`.
    pub fn new(limit: usize) -> Newest {
        Newest { limit, tasks: VecDeque::new() }
    }

    /// Takes a task in. True when another one had to end for it.
    pub fn admit(&mut self, task: AbortHandle) -> bool {
        self.tasks.push_back(task);
        if self.tasks.len() <= self.limit {
            return false;
        }
        self.tasks.retain(|task| !task.is_finished());
        if self.tasks.len() <= self.limit {
            return false;
        }
        if let Some(oldest) = self.tasks.pop_front() {
            oldest.abort();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_goes_on_makes_room() {
        let mut newest = Newest::new(2);
        let ended = tokio::spawn(async {});
        let handle = ended.abort_handle();
        ended.await.unwrap();
        let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        assert!(!newest.admit(handle));
        assert!(!newest.admit(tasks[0].abort_handle()));
        assert!(!newest.admit(tasks[1].abort_handle()), "the first one ended by itself");
        assert!(newest.admit(tasks[2].abort_handle()));
        let mut tasks = tasks.into_iter();
        assert!(tasks.next().unwrap().await.unwrap_err().is_cancelled());
        assert!(tasks.all(|task| !task.is_finished()));
    }
}
