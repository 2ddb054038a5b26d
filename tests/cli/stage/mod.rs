//! Where a transcript plays: a working directory, running programs, and commands one after the other.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use regex::Regex;
use tempfile::TempDir;

use crate::normal::normal;
use crate::transcript::{Command, Outcome, Part, Transcript, words};

pub use server::ServerStage;

/// Whose output is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Reference,
    Finial,
}

/// The programs that a transcript needs, running. Another set of programs is another implementation.
pub trait Stage: Sized {
    /// The program whose command line is tried, for example `server`.
    const PROGRAM: &'static str;

    /// Starts the programs on `folder`.
    fn start(programs: &Programs, folder: &Path) -> Self;

    /// Environment variables of every command.
    fn environment(&self) -> Vec<(String, String)>;

    /// Does what a directive of this stage says.
    fn direct(&mut self, words: &[String]);
}

/// Where the programs are.
pub struct Programs {
    pub whose: Whose,
    folder: PathBuf,
}

impl Programs {
    /// Those of this build, or those in the folder that CAPTURE_FROM names.
    pub fn chosen() -> Programs {
        match std::env::var_os("CAPTURE_FROM") {
            Some(folder) => Programs { whose: Whose::Reference, folder: PathBuf::from(folder) },
            None => {
                let folder = finial_tests::real::binary("x").parent().unwrap().to_owned();
                Programs { whose: Whose::Finial, folder }
            }
        }
    }

    /// `server` or `agent`.
    pub fn path(&self, name: &str) -> PathBuf {
        let family = if self.whose == Whose::Reference { "spire" } else { "finial" };
        let path = self.folder.join(format!("{family}-{name}"));
        assert!(path.exists(), "{} is not there; build it with cargo build --bins", path.display());
        path
    }
}

/// Plays the transcript and compares it; in capture mode writes it anew with what the reference program prints, and with
/// UPDATE_GOLDEN what Finial prints where it differs on purpose.
pub fn play<S: Stage>(file: &Path) {
    let programs = Programs::chosen();
    let written = std::fs::read_to_string(file).unwrap();
    let mut transcript = Transcript::parse(&written);
    let folder = TempDir::new().unwrap();
    let mut player = Player {
        stage: S::start(&programs, folder.path()),
        program: programs.path(S::PROGRAM),
        folder: folder.path(),
        taken: BTreeMap::new(),
        stdin: None,
        environment: Vec::new(),
        last: Outcome::default(),
    };
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut faults = Vec::new();
    for part in &mut transcript.parts {
        match part {
            Part::Text(_) => {}
            Part::File { name, text } => player.file(name, text),
            Part::Directive(line) => player.direct(line),
            Part::Command(command) => {
                let found = normal(&player.run(&command.line), folder.path());
                match programs.whose {
                    Whose::Reference => command.reference = found,
                    Whose::Finial if update && command.differs.is_some() => command.own = found,
                    Whose::Finial => faults.extend(fault(command, &found)),
                }
            }
        }
    }
    if programs.whose == Whose::Reference || update {
        std::fs::write(file, transcript.write()).unwrap();
    }
    assert!(faults.is_empty(), "{}:\n\n{}", file.display(), faults.join("\n"));
}

fn fault(command: &Command, found: &Outcome) -> Option<String> {
    let Command { number, line, .. } = command;
    let expected = match command.differs {
        None => &command.reference,
        Some(_) if *found == command.reference => {
            return Some(format!("line {number}: $ {line}\nis the same by now; take away \"@ differs\"\n"));
        }
        Some(_) => &command.own,
    };
    (found != expected)
        .then(|| format!("line {number}: $ {line}\nshould be\n{}is\n{}", expected.shown(), found.shown()))
}

struct Player<'a, S> {
    stage: S,
    program: PathBuf,
    folder: &'a Path,
    taken: BTreeMap<String, String>,
    stdin: Option<String>,
    environment: Vec<(String, Option<String>)>,
    last: Outcome,
}

impl<S: Stage> Player<'_, S> {
    fn run(&mut self, line: &str) -> Outcome {
        let stdin = match self.stdin.take() {
            Some(name) => Stdio::from(std::fs::File::open(self.folder.join(name)).unwrap()),
            None => Stdio::null(),
        };
        let line = self.filled(line);
        let mut process = Process::new(&self.program);
        process.args(words(&line)).current_dir(self.folder).stdin(stdin);
        process.env("TZ", "UTC").envs(self.stage.environment());
        for (name, value) in std::mem::take(&mut self.environment) {
            match value {
                Some(value) => process.env(name, value),
                None => process.env_remove(name),
            };
        }
        let output = process.output().unwrap();
        self.last = Outcome {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        self.last.clone()
    }

    fn file(&mut self, name: &str, text: &str) {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, self.filled(text)).unwrap();
    }

    fn direct(&mut self, line: &str) {
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

/// The transcripts in `tests/cli/<folder>`.
pub fn transcripts(folder: &str) -> BTreeSet<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cli").join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "txt")).collect()
}
