//! Backslash escapes in quoted strings.

use super::lexer::Cursor;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Go's escapes: `\a \b \f \n \r \t \v \\ \"`, `\ooo`, `\xHH`, `\uHHHH`, `\UHHHHHHHH`.
    Hcl,
    /// RFC 8259 section 7: `\" \\ \/ \b \f \n \r \t`, `\uHHHH` with surrogate pairs.
    Json,
}

/// Reads what follows a backslash and appends what it stands for.
pub(super) fn read_escape(
    cursor: &mut Cursor<'_>,
    dialect: Dialect,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let Some(kind) = cursor.next() else {
        return Err("the string ends in a backslash".to_string());
    };
    match (kind, dialect) {
        ('"', _) => out.push(b'"'),
        ('\\', _) => out.push(b'\\'),
        ('/', Dialect::Json) => out.push(b'/'),
        ('b', _) => out.push(0x08),
        ('f', _) => out.push(0x0c),
        ('n', _) => out.push(b'\n'),
        ('r', _) => out.push(b'\r'),
        ('t', _) => out.push(b'\t'),
        ('a', Dialect::Hcl) => out.push(0x07),
        ('v', Dialect::Hcl) => out.push(0x0b),
        ('x', Dialect::Hcl) => {
            let byte = digits(cursor, 16, 2)?;
            out.push(u8::try_from(byte).map_err(|_| "an \\x escape is one byte".to_string())?);
        }
        ('0'..='7', Dialect::Hcl) => {
            let first = kind.to_digit(8).unwrap_or(0);
            let byte = first * 64 + digits(cursor, 8, 2)?;
            out.push(u8::try_from(byte).map_err(|_| "an octal escape is at most \\377".to_string())?);
        }
        ('u', Dialect::Hcl) => push_code_point(digits(cursor, 16, 4)?, out)?,
        ('U', Dialect::Hcl) => push_code_point(digits(cursor, 16, 8)?, out)?,
        ('u', Dialect::Json) => {
            let mut code = digits(cursor, 16, 4)?;
            if (0xd800..0xdc00).contains(&code) && cursor.rest().starts_with("\\u") {
                cursor.next();
                cursor.next();
                let low = digits(cursor, 16, 4)?;
                if !(0xdc00..0xe000).contains(&low) {
                    return Err("a \\u surrogate stands alone".to_string());
                }
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            push_code_point(code, out)?;
        }
        (other, _) => {
            return Err(format!(
                "unknown escape \\{}; a backslash itself is written \\\\",
                other.escape_default()
            ));
        }
    }
    Ok(())
}

fn digits(cursor: &mut Cursor<'_>, radix: u32, count: usize) -> Result<u32, String> {
    let mut value = 0_u32;
    for _ in 0..count {
        let digit = cursor
            .peek()
            .and_then(|c| c.to_digit(radix))
            .ok_or_else(|| format!("the escape needs {count} digits of base {radix} here"))?;
        cursor.next();
        value = value.wrapping_mul(radix).wrapping_add(digit);
    }
    Ok(value)
}

fn push_code_point(code: u32, out: &mut Vec<u8>) -> Result<(), String> {
    let c = char::from_u32(code).ok_or_else(|| format!("U+{code:04X} is not a character"))?;
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}
