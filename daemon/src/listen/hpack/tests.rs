use httlib_hpack::Encoder;
use proptest::prelude::*;

use super::*;

const ANY_SIZE: usize = usize::MAX;

fn field(name: &str, value: &str) -> Field {
    Field { name: Bytes::copy_from_slice(name.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn decode_all(blocks: &[&str]) -> (Vec<Vec<Field>>, Decoder) {
    let mut decoder = Decoder::new(DEFAULT_TABLE_SIZE);
    let lists = blocks.iter().map(|block| decoder.decode(&unhex(block), ANY_SIZE).unwrap()).collect();
    (lists, decoder)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn rfc_lists() -> Vec<Vec<Field>> {
    let common = |scheme: &str, path: &str| {
        vec![
            field(":method", "GET"),
            field(":scheme", scheme),
            field(":path", path),
            field(":authority", "www.example.com"),
        ]
    };
    let mut second = common("http", "/");
    second.push(field("cache-control", "no-cache"));
    let mut third = common("https", "/index.html");
    third.push(field("custom-key", "custom-value"));
    vec![common("http", "/"), second, third]
}

#[test]
fn decodes_the_rfcs_requests_without_huffman() {
    // RFC 7541, C.3.
    let (lists, decoder) = decode_all(&[
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
    assert_eq!(lists, rfc_lists());
    assert_eq!(decoder.size, 164);
    assert_eq!(decoder.entries[0], field("custom-key", "custom-value"));
}

#[test]
fn decodes_the_rfcs_requests_with_huffman() {
    // RFC 7541, C.4.
    let (lists, decoder) = decode_all(&[
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
    assert_eq!(lists, rfc_lists());
    assert_eq!(decoder.size, 164);
}

#[test]
fn evicts_as_the_rfcs_responses_do() {
    // RFC 7541, C.6, with a table of 256 bytes.
    let mut decoder = Decoder::new(256);
    for block in [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
         b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ] {
        let list = decoder.decode(&unhex(block), ANY_SIZE).unwrap();
        assert!(list[0].name == ":status".as_bytes());
    }
    assert_eq!(decoder.size, 215);
    assert_eq!(
        decoder.entries,
        [
            field("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            field("content-encoding", "gzip"),
            field("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ]
    );
}

#[test]
fn the_table_follows_size_updates_up_to_what_was_offered() {
    let mut decoder = Decoder::new(4096);
    decoder.decode(&unhex("4001 6101 6240 0163 0164"), ANY_SIZE).unwrap();
    assert_eq!(decoder.size, 68);
    // To 40: only the newest entry fits.
    assert_eq!(decoder.decode(&unhex("3f09 be"), ANY_SIZE), Ok(vec![field("c", "d")]));
    assert_eq!(decoder.decode(&unhex("bf"), ANY_SIZE), Err(HpackError::NoSuchEntry));
    // To nothing and back, in one block.
    let mut decoder = Decoder::new(4096);
    decoder.decode(&unhex("4001 6101 62"), ANY_SIZE).unwrap();
    assert_eq!(decoder.decode(&unhex("20 3fe1 1f"), ANY_SIZE), Ok(vec![]));
    assert_eq!((decoder.size, decoder.max_size), (0, 4096));
    // To 4097.
    assert_eq!(decoder.decode(&unhex("3fe2 1f"), ANY_SIZE), Err(HpackError::BadTableSize));
    // Not at the start.
    assert_eq!(Decoder::new(4096).decode(&unhex("82 20"), ANY_SIZE), Err(HpackError::BadTableSize));
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(64);
    decoder.decode(&unhex("4001 6101 62"), ANY_SIZE).unwrap();
    let mut block = vec![0x40, 1, b'x', 40];
    block.extend([b'y'; 40]);
    assert_eq!(decoder.decode(&block, ANY_SIZE).unwrap().len(), 1);
    assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
}

#[test]
fn refuses_what_is_malformed() {
    use HpackError::*;
    for (block, expected) in [
        ("80", NoSuchEntry),
        ("be", NoSuchEntry),
        ("7e 01 61", NoSuchEntry),
        ("ff", CutOff),
        ("ff 80 80 80 80 80 80 80 01", NumberTooLarge),
        ("00", CutOff),
        ("00 05 61", CutOff),
        ("00 01 61", CutOff),
        ("00 01 61 7f ff ff ff 7f", CutOff),
        ("41", CutOff),
        ("41 7f", CutOff),
        // End of string inside, wrong padding, eight bits of padding.
        ("00 01 61 84 ff ff ff ff", BadHuffman),
        ("00 01 61 81 18", BadHuffman),
        ("00 01 61 82 1f ff", BadHuffman),
    ] {
        assert_eq!(Decoder::new(4096).decode(&unhex(block), ANY_SIZE), Err(expected), "{block}");
    }
}

#[test]
fn a_small_block_cannot_become_a_large_list() {
    let mut decoder = Decoder::new(4096);
    let mut block = vec![0x40, 1, b'x'];
    put_number(4000, 7, &mut block);
    block.extend([b'y'; 4000]);
    block.extend([0xbe; 10_000]);
    assert_eq!(decoder.decode(&block, 64 * 1024), Err(HpackError::ListTooLarge));
}

#[test]
fn every_byte_has_a_huffman_code() {
    for byte in 0..=u8::MAX {
        let mut block = Vec::new();
        let value = vec![byte; 3];
        let flags = Encoder::HUFFMAN_VALUE | Encoder::HUFFMAN_NAME;
        Encoder::default().encode((b"x".to_vec(), value.clone(), flags), &mut block).unwrap();
        let list = Decoder::new(4096).decode(&block, ANY_SIZE).unwrap();
        assert_eq!(list[0].value, value, "{byte}");
    }
    assert_eq!(HUFFMAN_LENGTHS.iter().filter(|length| **length == 0).count(), 0);
}

fn any_field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, u8)> {
    let name = prop_oneof![
        prop::sample::select(vec![":authority", ":path", "user-agent", "te", "grpc-timeout", "content-type"])
            .prop_map(|name| name.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..200),
    ];
    let value = prop_oneof![
        prop::sample::select(vec!["", "GET", "/", "trailers", "gzip, deflate", "http"])
            .prop_map(|value| value.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..600),
    ];
    // How it is written: with or without indexing, by name or whole, with Huffman code or without.
    let flags = (0_u8..32).prop_map(|bits| bits & !if bits & 4 != 0 { 8 } else { 0 });
    (name, value, flags)
}

proptest! {
    #[test]
    fn reads_what_another_encoder_wrote(lists in prop::collection::vec(prop::collection::vec(any_field(), 0..20), 1..8)) {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::new(4096);
        for list in lists {
            let mut block = Vec::new();
            for field in &list {
                encoder.encode(field.clone(), &mut block).unwrap();
            }
            let expected: Vec<Field> =
                list.into_iter().map(|(name, value, _)| Field { name: name.into(), value: value.into() }).collect();
            prop_assert_eq!(decoder.decode(&block, ANY_SIZE).unwrap(), expected);
        }
    }

    #[test]
    fn what_it_writes_is_read_back_without_growing_the_table(list in prop::collection::vec(any_field(), 0..20)) {
        let list: Vec<Field> =
            list.into_iter().map(|(name, value, _)| Field { name: name.into(), value: value.into() }).collect();
        let mut block = Vec::new();
        encode(&list, &mut block);
        let mut decoder = Decoder::new(4096);
        prop_assert_eq!(decoder.decode(&block, ANY_SIZE).unwrap(), list);
        prop_assert_eq!(decoder.size, 0);
    }

    #[test]
    fn survives_any_bytes(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5)) {
        let mut decoder = Decoder::new(4096);
        for block in blocks {
            let _ = decoder.decode(&block, 10_000);
            prop_assert!(decoder.size <= 4096);
            prop_assert_eq!(decoder.size, decoder.entries.iter().map(Field::counted_size).sum::<usize>());
        }
    }

    #[test]
    fn survives_cuts(list in prop::collection::vec(any_field(), 1..10), cut in any::<prop::sample::Index>()) {
        let mut block = Vec::new();
        let mut encoder = Encoder::default();
        for field in list {
            encoder.encode(field, &mut block).unwrap();
        }
        block.truncate(cut.index(block.len()));
        let _ = Decoder::new(4096).decode(&block, ANY_SIZE);
    }
}
