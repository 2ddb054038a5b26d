//! What the command lines print, compared with what SPIRE 1.15.3 prints for the same state: transcripts beside this file,
//! one for each noun, which hold the reference program's exit codes, standard output and standard error. Another program's
//! are a folder more: a [`stage::Stage`] on which it plays, and a line with its transcripts below.
//!
//! # How they were captured
//!
//! `CAPTURE_FROM=<folder with spire-server and spire-agent> cargo test -p finial-tests --test cli` plays every transcript with the
//! reference program, against its own server and agent, and writes down what it prints. Nothing of that program is kept here but
//! these texts. Without CAPTURE_FROM the programs of this build play, and any difference is a failure.
//!
//! # Where Finial differs on purpose
//!
//! `@ differs REASON` stands before such a command in its transcript, and Finial's own output behind it.
//! `UPDATE_GOLDEN=1` writes that output, and the list of reasons in `docs/compatibility.md`. How to write a transcript is
//! told in `transcript.rs`, and what is not compared in `normal.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

mod bundle_documents;
mod normal;
mod stage;
mod transcript;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use stage::{AgentStage, ServerStage, play, transcripts};
use transcript::Transcript;

/// The transcripts in a folder, each a test, played on a stage.
macro_rules! transcripts {
    ($folder:ident on $stage:ty: $($name:ident),* $(,)?) => {
        mod $folder {
            use super::*;

            $(
                #[test]
                fn $name() {
                    play::<$stage>(&file(stringify!($folder), stringify!($name)));
                }
            )*

            #[test]
            fn no_transcript_is_forgotten() {
                let played: BTreeSet<PathBuf> =
                    [$(file(stringify!($folder), stringify!($name))),*].into();
                assert_eq!(transcripts(stringify!($folder)), played);
            }
        }
    };
}

transcripts!(server on ServerStage:
    agent, bundle, debug, entry, federation, general, healthcheck, jwt, localauthority, logger, token, upstreamauthority,
    validate, x509,
);

transcripts!(agent on AgentStage: admin, fetch, general, healthcheck, jwt, stop, validate, watch);

/// The folders of transcripts.
const FOLDERS: [&str; 2] = ["agent", "server"];

fn file(folder: &str, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cli").join(folder).join(format!("{name}.txt"))
}

/// The table of deliberate differences in the documentation is that of the transcripts.
#[test]
fn the_documentation_lists_the_differences() {
    const BEGIN: &str = "<!-- differences of the command line: begin -->\n";
    const END: &str = "<!-- differences of the command line: end -->\n";
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in FOLDERS.into_iter().flat_map(transcripts) {
        let transcript = Transcript::parse(&std::fs::read_to_string(&file).unwrap());
        for command in transcript.commands() {
            if let Some(reason) = &command.differs {
                reasons.entry(reason.clone()).or_default().push(command.line.clone());
            }
        }
    }
    let mut table = String::from("| what, and why | example | commands |\n|---|---|---|\n");
    for (reason, lines) in reasons {
        let example = lines.iter().find(|line| !line.is_empty()).unwrap().replace('|', "\\|");
        table += &format!("| {reason} | `{example}` | {} |\n", lines.len());
    }
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/compatibility.md has lost its mark");
    let (found, after) = rest.split_once(END).expect("docs/compatibility.md has lost its mark");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, table, "UPDATE_GOLDEN=1 writes the list anew");
}
