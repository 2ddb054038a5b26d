//! Command lines and what they printed, as a text that people read and this program rewrites.
//!
//! ```text
//! # A comment.
//! @ file data.json        until `@ end`: a file in the working directory
//! @ stdin data.json       the file is standard input of the next command
//! @ env NAME=value        of the next command; `@ env NAME` takes the variable away
//! @ take KEY regex        the first group, found in what the last command printed, is {KEY} from now on
//! @ NAME arguments        anything else is done by the stage, see there
//! @ differs reason        the next command is one where Finial differs on purpose
//! $ entry show -output json
//! $ :files folder         not the program is asked, but what files with what modes are in a folder
//! $ :signal INT watch     the program gets the signal when it has printed an update or a complaint
//! $ :NAME arguments       anything else is answered by the stage, see there
//! ? 1                     the exit code, unless it is 0
//! 1| standard output
//! 2| standard error
//! 1~ a last line without a line end
//! ```
//!
//! These lines are what the reference program printed. Behind `@ differs` what Finial prints follows with `!` in place of
//! `|`, `-` in place of `~` and `!?` in place of `?`.

use std::fmt::Write;

/// One transcript.
pub struct Transcript {
    pub parts: Vec<Part>,
}

pub enum Part {
    /// A comment or an empty line.
    Text(String),
    File {
        name: String,
        text: String,
    },
    /// A line that begins with `@`, without that.
    Directive(String),
    Command(Box<Command>),
}

pub struct Command {
    /// The line of the file, from 1.
    pub number: usize,
    /// What is typed behind the program's name.
    pub line: String,
    /// Why Finial differs.
    pub differs: Option<String>,
    /// Of the reference program.
    pub reference: Outcome,
    /// Of Finial, where it differs.
    pub own: Outcome,
}

/// What a command came to, in the form in which it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Transcript {
    pub fn parse(text: &str) -> Transcript {
        let mut parts = Vec::new();
        let mut differs = None;
        let mut lines = text.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            if let Some(directive) = line.strip_prefix("@ ") {
                if let Some(name) = directive.strip_prefix("file ") {
                    let mut text = String::new();
                    for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "@ end") {
                        text += line;
                        text.push('\n');
                    }
                    parts.push(Part::File { name: name.to_owned(), text });
                } else if let Some(reason) = directive.strip_prefix("differs ") {
                    differs = Some(reason.to_owned());
                } else {
                    parts.push(Part::Directive(directive.to_owned()));
                }
            } else if let Some(line) = line.strip_prefix('$') {
                let mut command = Command {
                    number: index + 1,
                    line: line.trim().to_owned(),
                    differs: differs.take(),
                    reference: Outcome::default(),
                    own: Outcome::default(),
                };
                while let Some((_, line)) = lines.next_if(|(_, line)| command.takes(line)) {
                    command.read(line);
                }
                parts.push(Part::Command(Box::new(command)));
            } else {
                assert!(line.is_empty() || line.starts_with('#'), "line {}: what is {line:?}?", index + 1);
                parts.push(Part::Text(line.to_owned()));
            }
        }
        Transcript { parts }
    }

    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        self.parts.iter().filter_map(|part| match part {
            Part::Command(command) => Some(&**command),
            _ => None,
        })
    }

    pub fn write(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(line) => text += &format!("{line}\n"),
                Part::File { name, text: content } => text += &format!("@ file {name}\n{content}@ end\n"),
                Part::Directive(line) => text += &format!("@ {line}\n"),
                Part::Command(command) => command.write(&mut text),
            }
        }
        text
    }
}

impl Command {
    fn takes(&self, line: &str) -> bool {
        ["? ", "!? ", "1|", "2|", "1~", "2~", "1!", "2!", "1-", "2-"]
            .iter()
            .any(|mark| line.starts_with(mark))
    }

    fn read(&mut self, line: &str) {
        if let Some(code) = line.strip_prefix("? ") {
            self.reference.code = code.parse().unwrap();
            return;
        }
        if let Some(code) = line.strip_prefix("!? ") {
            self.own.code = code.parse().unwrap();
            return;
        }
        let (mark, rest) = line.split_at(2);
        let outcome = if mark.ends_with(['|', '~']) { &mut self.reference } else { &mut self.own };
        let stream = if mark.starts_with('1') { &mut outcome.out } else { &mut outcome.err };
        *stream += rest.strip_prefix(' ').unwrap_or(rest);
        if mark.ends_with(['|', '!']) {
            stream.push('\n');
        }
    }

    fn write(&self, text: &mut String) {
        if let Some(reason) = &self.differs {
            let _ = writeln!(text, "@ differs {reason}");
        }
        let _ = writeln!(text, "{}", format!("$ {}", self.line).trim_end());
        self.reference.write(text, "?", '|', '~');
        if self.differs.is_some() {
            self.own.write(text, "!?", '!', '-');
        }
    }
}

impl Outcome {
    fn write(&self, text: &mut String, exit: &str, whole: char, open: char) {
        if self.code != 0 {
            let _ = writeln!(text, "{exit} {}", self.code);
        }
        for (number, stream) in [('1', &self.out), ('2', &self.err)] {
            for line in stream.split_inclusive('\n') {
                let (mark, line) = match line.strip_suffix('\n') {
                    Some(line) => (whole, line),
                    None => (open, line),
                };
                let _ = writeln!(text, "{number}{mark}{}{line}", if line.is_empty() { "" } else { " " });
            }
        }
    }

    /// For a failure's message.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, "?", '|', '~');
        text
    }
}

/// Words as a shell takes them apart: spaces part, single and double quotes hold together.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn a_transcript_is_written_as_it_was_read() {
    let text = "# About.\n\n@ file a.json\n{}\n@ end\n@ env A=b\n@ differs a reason\n$ entry show 'a b' \"\"\n? 1\n1| x\n1|\n1~ y\n\
                2|   z\n!? 2\n1- w\n$\n? 127\n";
    let transcript = Transcript::parse(text);
    assert_eq!(transcript.write(), text);
    let command = transcript.commands().next().unwrap();
    assert_eq!(command.reference, Outcome { code: 1, out: "x\n\ny".into(), err: "  z\n".into() });
    assert_eq!(command.own, Outcome { code: 2, out: "w".into(), err: String::new() });
    assert_eq!(words(&command.line), ["entry", "show", "a b", ""]);
}
