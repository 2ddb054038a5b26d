//! Follows a transcript, line by line.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;

use super::Stage;
use crate::transcript::{Outcome, words};

/// How long a program may take until it has something to say.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Player<'a, S> {
    stage: S,
    program: PathBuf,
    folder: &'a Path,
    taken: BTreeMap<String, String>,
    stdin: Option<String>,
    environment: Vec<(String, Option<String>)>,
    last: Outcome,
}

impl<'a, S: Stage> Player<'a, S> {
    pub fn new(stage: S, program: PathBuf, folder: &'a Path) -> Player<'a, S> {
        let taken = stage.names();
        let (environment, last) = (Vec::new(), Outcome::default());
        Player { stage, program, folder, taken, stdin: None, environment, last }
    }

    /// Runs the program to its end, or does what the line says that begins with a colon.
    pub fn run(&mut self, line: &str) -> Outcome {
        let line = words(&self.filled(line));
        self.last = match line.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [":files", folder] => files(&self.folder.join(folder)),
            [":signal", name, ..] => {
                let signal = format!("SIG{name}").parse().unwrap();
                let mut process = self.process(&line[2..]);
                interrupted(process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), signal)
            }
            [name, ..] if name.starts_with(':') => self.stage.answer(&line),
            _ => {
                let output = self.process(&line).output().unwrap();
                outcome(output.status.code(), &output.stdout, &output.stderr)
            }
        };
        self.last.clone()
    }

    fn process(&mut self, words: &[String]) -> Process {
        let stdin = match self.stdin.take() {
            Some(name) => Stdio::from(std::fs::File::open(self.folder.join(name)).unwrap()),
            None => Stdio::null(),
        };
        let mut process = Process::new(&self.program);
        process.args(words).current_dir(self.folder).stdin(stdin);
        process.env("TZ", "UTC").envs(self.stage.environment());
        for (name, value) in std::mem::take(&mut self.environment) {
            match value {
                Some(value) => process.env(name, value),
                None => process.env_remove(name),
            };
        }
        process
    }

    pub fn file(&mut self, name: &str, text: &str) {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, self.filled(text)).unwrap();
    }

    pub fn direct(&mut self, line: &str) {
        let line = self.filled(line);
        let (name, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match name {
            "stdin" => self.stdin = Some(rest.to_owned()),
            "env" => self.environment.push(match rest.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (rest.to_owned(), None),
            }),
            "take" => {
                let (key, pattern) = rest.split_once(' ').unwrap();
                let printed = format!("{}{}", self.last.out, self.last.err);
                let found = Regex::new(pattern).unwrap().captures(&printed);
                let found = found.unwrap_or_else(|| panic!("no {pattern} in {printed}"))[1].to_owned();
                self.taken.insert(key.to_owned(), found);
            }
            // Standard output of the last command as a file.
            "keep" => std::fs::write(self.folder.join(rest), &self.last.out).unwrap(),
            _ => self.stage.direct(&words(&line)),
        }
    }

    fn filled(&self, line: &str) -> String {
        let mut line = line.replace("{dir}", self.folder.to_str().unwrap());
        for (key, value) in &self.taken {
            line = line.replace(&format!("{{{key}}}"), value);
        }
        line
    }
}

fn outcome(code: Option<i32>, out: &[u8], err: &[u8]) -> Outcome {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome { code: code.unwrap_or(-1), out: text(out), err: text(err) }
}

/// What a program printed that runs until a signal comes, which comes when it has printed a whole update or a line of
/// complaint.
fn interrupted(mut child: Child, signal: Signal) -> Outcome {
    let (send, receive) = mpsc::channel();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let streams: [(bool, Box<dyn Read + Send>); 2] = [(true, Box::new(out)), (false, Box::new(err))];
    for (is_out, mut stream) in streams {
        let send = send.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if send.send((is_out, buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
        });
    }
    drop(send);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut signalled = false;
    loop {
        match receive.recv_timeout(PATIENCE) {
            Ok((true, more)) => out.extend(more),
            Ok((false, more)) => err.extend(more),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("the program neither speaks nor ends: {:?}", outcome(None, &out, &err));
            }
        }
        if !signalled && (is_update(&out) || err.ends_with(b"\n")) {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            signalled = true;
        }
    }
    outcome(child.wait().unwrap().code(), &out, &err)
}

/// Whether it is as many SVIDs as its first line says.
fn is_update(out: &[u8]) -> bool {
    let text = String::from_utf8_lossy(out);
    let told: Option<usize> = text.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    told.is_some_and(|number| text.ends_with("\n\n") && text.matches("SPIFFE ID:").count() >= number)
}

/// The files of a folder with their modes, and what PEM blocks are in them.
fn files(folder: &Path) -> Outcome {
    let mut lines = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let mode = file.metadata().unwrap().permissions().mode() & 0o7777;
        let text = std::fs::read_to_string(file.path()).unwrap();
        let blocks: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("-----BEGIN ")).collect();
        let blocks = blocks.join(" ").replace("-----", ";");
        lines.push(format!("{} {mode:04o} {blocks}\n", file.file_name().to_str().unwrap()));
    }
    lines.sort();
    Outcome { out: lines.concat(), ..Outcome::default() }
}
