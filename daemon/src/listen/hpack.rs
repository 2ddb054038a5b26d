//! HPACK (RFC 7541): header blocks to header lists and back.
//!
//! Decoding keeps the dynamic table as the client's encoder does; encoding writes literals only and needs
//! no state. The crates that do this either panic on cut-off input or build their Huffman table anew for
//! each string, which is too much to give to whoever may open a socket.

use std::collections::VecDeque;

use bytes::Bytes;

/// The table size in force until SETTINGS_HEADER_TABLE_SIZE says otherwise (RFC 9113, 6.5.2). hyper's
/// servers never say otherwise.
pub(super) const DEFAULT_TABLE_SIZE: usize = 4096;
/// What each entry counts beyond its bytes (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// One header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Bytes,
    pub(super) value: Bytes,
}

/// Why a header block cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HpackError {
    #[error("the header block is cut off")]
    CutOff,
    #[error("a number in the header block is too large")]
    NumberTooLarge,
    #[error("a header field refers to an entry that does not exist")]
    NoSuchEntry,
    #[error("a string is not valid Huffman code")]
    BadHuffman,
    #[error("the table size is set to more than was offered, or not at the start of a header block")]
    BadTableSize,
    #[error("the header list is too large")]
    ListTooLarge,
}

/// Decodes the header blocks of one connection, in order.
#[derive(Debug)]
pub(super) struct Decoder {
    entries: VecDeque<Field>,
    size: usize,
    /// What the client's encoder uses at present.
    max_size: usize,
    /// What it may use at most.
    offered_size: usize,
}

impl Decoder {
    /// A decoder for a client that was offered a dynamic table of `offered_size` bytes.
    pub(super) fn new(offered_size: usize) -> Decoder {
        Decoder { entries: VecDeque::new(), size: 0, max_size: offered_size, offered_size }
    }

    /// Decodes a whole header block. Fails when the list would count more than `max_list` bytes, each field
    /// as in the dynamic table. After a failure the decoder is of no more use.
    pub(super) fn decode(&mut self, block: &[u8], max_list: usize) -> Result<Vec<Field>, HpackError> {
        let mut rest = block;
        let mut fields = Vec::new();
        let mut counted = 0_usize;
        while let Some(first) = rest.first() {
            let field = match first.leading_zeros() {
                0 => {
                    let index = take_number(&mut rest, 7)?;
                    self.entry(index)?
                }
                1 => {
                    let field = self.take_literal(&mut rest, 6)?;
                    self.insert(field.clone());
                    field
                }
                2 => {
                    let size = take_number(&mut rest, 5)?;
                    if !fields.is_empty() || size > self.offered_size {
                        return Err(HpackError::BadTableSize);
                    }
                    self.resize(size);
                    continue;
                }
                _ => self.take_literal(&mut rest, 4)?,
            };
            counted += field.counted_size();
            if counted > max_list {
                return Err(HpackError::ListTooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn take_literal(&self, rest: &mut &[u8], prefix: u32) -> Result<Field, HpackError> {
        let name = match take_number(rest, prefix)? {
            0 => take_string(rest)?,
            index => self.entry(index)?.name,
        };
        Ok(Field { name, value: take_string(rest)? })
    }

    fn entry(&self, index: usize) -> Result<Field, HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError::NoSuchEntry)?;
        if let Some((name, value)) = STATIC_TABLE.get(index) {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            return Ok(Field { name: Bytes::from_static(name), value: Bytes::from_static(value) });
        }
        self.entries.get(index - STATIC_TABLE.len()).cloned().ok_or(HpackError::NoSuchEntry)
    }

    fn insert(&mut self, field: Field) {
        self.size += field.counted_size();
        self.entries.push_front(field);
        self.evict();
    }

    fn resize(&mut self, size: usize) {
        self.max_size = size;
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.max_size {
            match self.entries.pop_back() {
                Some(field) => self.size -= field.counted_size(),
                None => return,
            }
        }
    }
}

impl Field {
    fn counted_size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// Appends `fields` as literals that leave the decoder's table alone.
pub(super) fn encode(fields: &[Field], block: &mut Vec<u8>) {
    for field in fields {
        block.push(0);
        put_string(&field.name, block);
        put_string(&field.value, block);
    }
}

fn put_string(string: &[u8], block: &mut Vec<u8>) {
    put_number(string.len(), 7, block);
    block.extend_from_slice(string);
}

fn put_number(number: usize, prefix: u32, block: &mut Vec<u8>) {
    let full = (1 << prefix) - 1;
    if number < full {
        block.push(number as u8);
        return;
    }
    block.push(full as u8);
    let mut rest = number - full;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A number whose first bits are the last `prefix` bits of the first byte (RFC 7541, 5.1).
fn take_number(rest: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let full = (1_usize << prefix) - 1;
    let mut number = usize::from(take_byte(rest)?) & full;
    if number < full {
        return Ok(number);
    }
    // Four more bytes reach 2^28, far beyond any block.
    for shift in [0, 7, 14, 21] {
        let byte = take_byte(rest)?;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(HpackError::NumberTooLarge)
}

fn take_string(rest: &mut &[u8]) -> Result<Bytes, HpackError> {
    let is_huffman = rest.first().ok_or(HpackError::CutOff)? & 0x80 != 0;
    let length = take_number(rest, 7)?;
    let (string, after) = rest.split_at_checked(length).ok_or(HpackError::CutOff)?;
    *rest = after;
    if is_huffman { huffman_decode(string) } else { Ok(Bytes::copy_from_slice(string)) }
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, HpackError> {
    let (byte, after) = rest.split_first().ok_or(HpackError::CutOff)?;
    *rest = after;
    Ok(*byte)
}

fn huffman_decode(code: &[u8]) -> Result<Bytes, HpackError> {
    // The shortest code has five bits.
    let mut decoded = Vec::with_capacity(code.len() * 8 / 5);
    let mut bits = 0_u32;
    let mut length = 0_usize;
    for byte in code {
        for position in (0..8).rev() {
            bits = bits << 1 | u32::from(byte >> position & 1);
            length += 1;
            let row = HUFFMAN.rows.get(length).ok_or(HpackError::BadHuffman)?;
            // Codes of one length are consecutive and stand in the order of their symbols.
            let Some(nth) = bits.checked_sub(row.first_code).filter(|nth| *nth < row.count) else { continue };
            let symbol = HUFFMAN.symbols[(row.first_symbol + nth) as usize];
            decoded.push(u8::try_from(symbol).map_err(|_| HpackError::BadHuffman)?);
            bits = 0;
            length = 0;
        }
    }
    // What is left is padding: the first bits of the end-of-string code, which are ones.
    if length > 7 || bits != (1 << length) - 1 {
        return Err(HpackError::BadHuffman);
    }
    Ok(decoded.into())
}

/// HPACK's Huffman code is canonical: the lengths of its codes define it.
struct Huffman {
    /// By code length.
    rows: [HuffmanRow; 31],
    /// By code length, then by value. 256 is the end of the string.
    symbols: [u16; 257],
}

#[derive(Clone, Copy)]
struct HuffmanRow {
    first_code: u32,
    count: u32,
    first_symbol: u32,
}

static HUFFMAN: Huffman = huffman();

const fn huffman() -> Huffman {
    let mut table =
        Huffman { rows: [HuffmanRow { first_code: 0, count: 0, first_symbol: 0 }; 31], symbols: [0; 257] };
    let mut code = 0;
    let mut placed = 0;
    let mut length = 1;
    while length < table.rows.len() {
        code <<= 1;
        let first_symbol = placed;
        let mut symbol = 0;
        while symbol < HUFFMAN_LENGTHS.len() {
            if HUFFMAN_LENGTHS[symbol] as usize == length {
                table.symbols[placed] = symbol as u16;
                placed += 1;
            }
            symbol += 1;
        }
        let count = (placed - first_symbol) as u32;
        table.rows[length] = HuffmanRow { first_code: code, count, first_symbol: first_symbol as u32 };
        code += count;
        length += 1;
    }
    table
}

/// Bits of each symbol's code (RFC 7541, appendix B).
const HUFFMAN_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

/// RFC 7541, appendix A.
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests;
