//! Where a transcript plays: a working directory, running programs, and commands one after the other.

mod agent;
mod player;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::normal::normal;
use crate::transcript::{Command, Outcome, Part, Transcript};

pub use agent::AgentStage;
pub use player::Player;
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

    /// What {NAME} stands for in a transcript, beside what `@ take` takes.
    fn names(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Does what a directive of this stage says.
    fn direct(&mut self, words: &[String]);

    /// Answers a line `$ :NAME …` of this stage in place of the program.
    fn answer(&mut self, words: &[String]) -> Outcome {
        panic!("nobody knows what to answer to {words:?}")
    }
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
    let stage = S::start(&programs, folder.path());
    let mut player = Player::new(stage, programs.path(S::PROGRAM), folder.path());
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

/// The transcripts in `tests/cli/<folder>`.
pub fn transcripts(folder: &str) -> BTreeSet<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cli").join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "txt")).collect()
}
