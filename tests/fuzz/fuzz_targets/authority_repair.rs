//! The repair of `:authority`, which decodes what whoever opens a socket sends.
//!
//! The first byte of the input says in which pieces the rest arrives. The files are compiled into this target, as what
//! they hold is private to their crate.
#![no_main]

#[path = "../../../daemon/src/listen/authority.rs"]
#[allow(dead_code, unreachable_pub)]
mod authority;
#[path = "../../../daemon/src/listen/hpack.rs"]
#[allow(dead_code)]
mod hpack;

use authority::Repair;
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_LIST: usize = 64 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some((piece, rest)) = data.split_first() else { return };

    // Frames, after a preface that a fuzzer would have to guess.
    let stream = [PREFACE, rest].concat();
    let whole = repaired(&stream, stream.len());
    let pieces = repaired(&stream, usize::from(*piece).max(1));
    assert_eq!(whole, pieces, "how the bytes arrive must not matter");
    if let (output, Ok(())) = &whole {
        // Nothing is left to repair, so nothing changes.
        assert_eq!(&repaired(output, output.len()), &whole);
    }
    // Not HTTP/2, and a preface that breaks off.
    let (output, result) = repaired(rest, 7);
    assert!(result.is_err() || rest.starts_with(&output) || rest.starts_with(PREFACE));

    // One header block.
    let mut decoder = hpack::Decoder::new(hpack::DEFAULT_TABLE_SIZE);
    if let Ok(fields) = decoder.decode(rest, MAX_LIST) {
        let mut block = Vec::new();
        hpack::encode(&fields, &mut block);
        let again = hpack::Decoder::new(hpack::DEFAULT_TABLE_SIZE).decode(&block, MAX_LIST);
        assert_eq!(again, Ok(fields));
    }
});

fn repaired(stream: &[u8], piece: usize) -> (Vec<u8>, Result<(), authority::Malformed>) {
    let mut repair = Repair::new();
    let mut output = Vec::new();
    for piece in stream.chunks(piece.max(1)) {
        if let Err(error) = repair.feed(piece, &mut output) {
            return (output, Err(error));
        }
    }
    (output, Ok(()))
}
