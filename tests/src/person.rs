//! Processes that are somebody: each runs a program of its own name and is told apart by its path.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that does nothing until it is dropped.
pub struct Person {
    child: Child,
    selector: String,
}

impl Person {
    /// Starts a copy of `cat` as `<folder>/<name>`.
    pub fn new(folder: &Path, name: &str) -> Person {
        let program = folder.canonicalize().unwrap().join(name);
        std::fs::copy("/bin/cat", &program).unwrap();
        let mut command = Command::new(&program);
        command.arg0("cat").stdin(Stdio::piped()).stdout(Stdio::null());
        let child = loop {
            match command.spawn() {
                Ok(child) => break child,
                // Another thread's child still holds the file that was just written, until it begins its own program.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                Err(error) => panic!("{}: {error}", program.display()),
            }
        };
        Person { child, selector: format!("unix:path:{}", program.display()) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What only this person has.
    pub fn selector(&self) -> String {
        self.selector.clone()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
