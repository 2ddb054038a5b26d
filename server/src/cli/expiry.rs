//! The time of `-expiresBefore`, checked as Go's `time.Parse` checks it. The server gets the text.

use finial_daemon::argv::text::quote;

use super::output::{Failure, fail};

const LAYOUT: &str = "2006-01-02 15:04:05 -0700 -07";

/// What stands before each part of [`LAYOUT`], the part, and how it is read.
const PARTS: [(&str, &str, Part); 8] = [
    ("", "2006", Part::Year),
    ("-", "01", Part::Two { name: "month", from: 1, to: 12 }),
    ("-", "02", Part::Two { name: "day", from: 0, to: 99 }),
    (" ", "15", Part::Hour),
    (":", "04", Part::Two { name: "minute", from: 0, to: 59 }),
    (":", "05", Part::Second),
    (" ", "-0700", Part::Zone { minutes: true }),
    (" ", "-07", Part::Zone { minutes: false }),
];

#[derive(Clone, Copy)]
enum Part {
    Year,
    Two {
        name: &'static str,
        from: u32,
        to: u32,
    },
    /// One digit or two.
    Hour,
    /// A fraction may follow.
    Second,
    Zone {
        minutes: bool,
    },
}

/// Why a part cannot be read.
enum Wrong {
    Shape,
    Range(&'static str),
}

/// Refuses what the server would not understand.
pub fn check(given: &str) -> Result<(), Failure> {
    parse(given).map_err(|cause| fail(format!("date is not valid: parsing time {}{cause}", quote(given))))
}

fn parse(given: &str) -> Result<(), String> {
    let cannot = |rest: &str, part: &str| {
        format!(" as {}: cannot parse {} as {}", quote(LAYOUT), quote(rest), quote(part))
    };
    let mut rest = given;
    let mut numbers = Vec::new();
    for (before, name, part) in PARTS {
        rest = skip(rest, before).map_err(|(rest, before)| cannot(rest, before))?;
        match part.read(rest) {
            Ok((number, after)) => {
                numbers.push(number);
                rest = after;
            }
            Err(Wrong::Shape) => return Err(cannot(rest, name)),
            Err(Wrong::Range(what)) => return Err(format!(": {what} out of range")),
        }
    }
    if !rest.is_empty() {
        return Err(format!(": extra text: {}", quote(rest)));
    }
    match numbers[..] {
        [year, month, day, ..] if day < 1 || day > days_in(year, month) => {
            Err(": day out of range".to_owned())
        }
        _ => Ok(()),
    }
}

impl Part {
    fn read(self, text: &str) -> Result<(u32, &str), Wrong> {
        match self {
            Part::Year => digits(text, 4),
            Part::Two { name, from, to } => in_range(digits(text, 2)?, name, from, to),
            Part::Hour => in_range(digits(text, 2).or_else(|_| digits(text, 1))?, "hour", 0, 23),
            Part::Second => {
                let (second, after) = in_range(digits(text, 2)?, "second", 0, 59)?;
                let fraction = after.strip_prefix(['.', ',']).filter(|rest| rest.starts_with(is_digit));
                Ok((second, fraction.map_or(after, |rest| rest.trim_start_matches(is_digit))))
            }
            Part::Zone { minutes } => {
                let number = text.strip_prefix(['+', '-']).ok_or(Wrong::Shape)?;
                let (_, after) = in_range(digits(number, 2)?, "time zone offset hour", 0, 24)?;
                if !minutes {
                    return Ok((0, after));
                }
                in_range(digits(after, 2)?, "time zone offset minute", 0, 60)
            }
        }
    }
}

/// The text behind `before`. A blank stands for any number of blanks, also for none at the end.
fn skip<'a>(text: &'a str, before: &'static str) -> Result<&'a str, (&'a str, &'static str)> {
    match before {
        " " if text.is_empty() || text.starts_with(' ') => Ok(text.trim_start_matches(' ')),
        _ => text.strip_prefix(before).ok_or((text, before)),
    }
}

fn digits(text: &str, count: usize) -> Result<(u32, &str), Wrong> {
    let (number, after) = text.split_at_checked(count).ok_or(Wrong::Shape)?;
    if !number.chars().all(is_digit) {
        return Err(Wrong::Shape);
    }
    number.parse().map(|number| (number, after)).map_err(|_| Wrong::Shape)
}

fn in_range<'a>(
    read: (u32, &'a str),
    name: &'static str,
    from: u32,
    to: u32,
) -> Result<(u32, &'a str), Wrong> {
    if (from..=to).contains(&read.0) { Ok(read) } else { Err(Wrong::Range(name)) }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_form_are_taken() {
        for text in [
            "2030-01-02 15:04:05 -0700 -07",
            "2000-02-29 15:04:05 +0000 +00",
            "2000-02-03 15:01:05.5 +0000 +00",
            "2030-01-02 1:04:05 -0700 -07",
            "2030-01-02  01:04:05   -0700 -07",
        ] {
            check(text).unwrap();
        }
    }

    /// What SPIRE 1.15.3 said to the same texts.
    #[test]
    fn others_are_refused_in_gos_words() {
        let layout = " as \"2006-01-02 15:04:05 -0700 -07\": cannot parse";
        for (text, cause) in [
            ("foo", format!("{layout} \"foo\" as \"2006\"")),
            ("2000-12-02", format!("{layout} \"\" as \"15\"")),
            ("2000-02-03 15:01:05 0000 +00", format!("{layout} \"0000 +00\" as \"-0700\"")),
            ("2000/02-03 15:01:05 0000 +00", format!("{layout} \"/02-03 15:01:05 0000 +00\" as \"-\"")),
            ("2000-02-03 15:01:05 UTC", format!("{layout} \"UTC\" as \"-0700\"")),
            ("2030-1-02 01:04:05 -0700 -07", format!("{layout} \"1-02 01:04:05 -0700 -07\" as \"01\"")),
            ("2000-13-02 15:04:05 +0000 +00", ": month out of range".into()),
            ("2000-12-32 15:04:05 +0000 +00", ": day out of range".into()),
            ("2000-02-30 15:04:05 +0000 +00", ": day out of range".into()),
            ("2000-12-02 25:04:05 +0000 +00", ": hour out of range".into()),
            ("2000-02-03 15:61:05 +0000 +00", ": minute out of range".into()),
            ("2000-02-03 15:01:65 +0000 +00", ": second out of range".into()),
            ("2000-02-03 15:01:05 +9900 +00", ": time zone offset hour out of range".into()),
            ("2000-12-02 15:04:05 +0000 +00 x", ": extra text: \" x\"".into()),
        ] {
            assert_eq!(
                check(text).unwrap_err().to_string(),
                format!("Error: date is not valid: parsing time \"{text}\"{cause}")
            );
        }
    }
}
