use std::time::UNIX_EPOCH;

use futures::StreamExt as _;
use httlib_hpack::Encoder;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::clock::Clock;
use crate::dial::{self, Dialer};
use crate::listen::{memory, plain};

const DATA: u8 = 0x0;
const SETTINGS: u8 = 0x4;

#[derive(Clone, Debug, PartialEq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Frame {
    Frame { kind, flags, stream, payload: payload.to_vec() }
}

fn write(frame: &Frame, to: &mut Vec<u8>) {
    to.extend_from_slice(&(frame.payload.len() as u32).to_be_bytes()[1..]);
    to.extend_from_slice(&[frame.kind, frame.flags]);
    to.extend_from_slice(&frame.stream.to_be_bytes());
    to.extend_from_slice(&frame.payload);
}

/// The whole frames at the front of `bytes`; the number of bytes they take.
fn read(bytes: &[u8]) -> (Vec<Frame>, usize) {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + HEAD_LEN) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some(payload) = bytes.get(at + HEAD_LEN..at + HEAD_LEN + length) else { break };
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        frames.push(frame(head[3], head[4], stream, payload));
        at += HEAD_LEN + length;
    }
    (frames, at)
}

fn connection(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    frames.iter().for_each(|frame| write(frame, &mut bytes));
    bytes
}

fn repair(input: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut output = Vec::new();
    Repair::new().feed(input, &mut output).map(|()| output)
}

fn request(authority: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/x.Y/Z"),
        (":authority", authority),
        ("te", "trailers"),
    ]
    .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
    .to_vec()
}

fn block(encoder: &mut Encoder<'_>, fields: &[(Vec<u8>, Vec<u8>)], flags: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        encoder.encode((name.clone(), value.clone(), flags), &mut block).unwrap();
    }
    block
}

/// Indexed where possible, otherwise added to the table, with Huffman code: what clients do.
const USUAL: u8 =
    Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;

/// The header lists that a server reads from `frames`, by another decoder than ours.
fn lists(frames: &[Frame]) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut decoder = httlib_hpack::Decoder::default();
    let mut lists = Vec::new();
    let mut open = Vec::new();
    for frame in frames {
        match frame.kind {
            HEADERS => open = split_headers(frame.flags, &frame.payload).unwrap().1.to_vec(),
            CONTINUATION => open.extend_from_slice(&frame.payload),
            _ => continue,
        }
        if frame.flags & END_HEADERS != 0 {
            let mut fields = Vec::new();
            decoder.decode(&mut open, &mut fields).unwrap();
            lists.push(fields.into_iter().map(|(name, value, _)| (name, value)).collect());
        }
    }
    lists
}

#[test]
fn replaces_what_is_no_authority() {
    for bad in ["/tmp/x.sock", "%2Ftmp%2Fx.sock", "", "unix:/tmp/x.sock", "a b", "\u{e9}"] {
        let headers = block(&mut Encoder::default(), &request(bad), USUAL);
        let input = connection(&[frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers)]);
        let output = repair(&input).unwrap();
        let (frames, _) = read(&output[PREFACE.len()..]);
        assert_eq!(lists(&frames), [request("localhost")], "{bad}");
        assert_eq!((frames[0].flags, frames[0].stream), (END_HEADERS | END_STREAM, 1));
    }
}

#[test]
fn leaves_a_good_connection_alone() {
    for good in ["localhost", "spire-server:8081", "[::1]:8081", "10.0.0.1", "unix"] {
        let mut encoder = Encoder::default();
        let input = connection(&[
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            frame(HEADERS, END_HEADERS | PADDED, 1, &padded(&block(&mut encoder, &request(good), USUAL), 9)),
            frame(DATA, END_STREAM, 1, b"payload"),
            frame(HEADERS, END_HEADERS, 3, &block(&mut encoder, &request(good), USUAL)),
            frame(DATA, END_STREAM, 3, b""),
        ]);
        assert_eq!(repair(&input).unwrap(), input, "{good}");
    }
}

#[test]
fn requests_without_authority_and_trailers_are_let_be() {
    let mut encoder = Encoder::default();
    let bare = vec![(b":method".to_vec(), b"POST".to_vec())];
    let trailer = vec![(b"grpc-status".to_vec(), b"0".to_vec())];
    let input = connection(&[
        frame(HEADERS, END_HEADERS, 1, &block(&mut encoder, &bare, USUAL)),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&mut encoder, &trailer, USUAL)),
    ]);
    assert_eq!(repair(&input).unwrap(), input);
}

#[test]
fn after_the_first_repair_every_block_is_written_anew() {
    let mut encoder = Encoder::default();
    let sent = [request("good"), request("/bad"), request("good"), request("/bad"), request("good")];
    let frames: Vec<Frame> = (1..)
        .step_by(2)
        .zip(&sent)
        .map(|(stream, list)| frame(HEADERS, END_HEADERS, stream, &block(&mut encoder, list, USUAL)))
        .collect();
    let output = repair(&connection(&frames)).unwrap();
    let (repaired, _) = read(&output[PREFACE.len()..]);
    assert_eq!(repaired[0], frames[0], "up to then the bytes pass");
    let expected = ["good", "localhost", "good", "localhost", "good"].map(request);
    assert_eq!(lists(&repaired), expected);
}

#[test]
fn any_cut_gives_the_same() {
    let mut encoder = Encoder::default();
    let first = block(&mut encoder, &request("/tmp/x.sock"), USUAL);
    let (start, end) = first.split_at(first.len() / 2);
    let input = connection(&[
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, PADDED | PRIORITY, 1, &padded(&[&[1, 2, 3, 4, 5], start].concat(), 3)),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, end),
        frame(DATA, END_STREAM, 1, b"hello"),
        frame(HEADERS, END_HEADERS, 3, &block(&mut encoder, &request("/tmp/x.sock"), USUAL)),
    ]);
    let whole = repair(&input).unwrap();
    let (frames, _) = read(&whole[PREFACE.len()..]);
    assert_eq!(lists(&frames), [request("localhost"), request("localhost")]);
    assert_eq!(frames[1].flags, PRIORITY | END_HEADERS);
    assert_eq!(frames[1].payload[..5], [1, 2, 3, 4, 5]);
    for cut in 0..=input.len() {
        let mut repair = Repair::new();
        let mut output = Vec::new();
        repair.feed(&input[..cut], &mut output).unwrap();
        repair.feed(&input[cut..], &mut output).unwrap();
        assert_eq!(output, whole, "cut at {cut}");
    }
    let mut repair = Repair::new();
    let mut output = Vec::new();
    input.iter().for_each(|byte| repair.feed(&[*byte], &mut output).unwrap());
    assert_eq!(output, whole);
}

#[test]
fn a_block_that_outgrows_a_frame_is_continued() {
    let mut fields = request("/tmp/x.sock");
    for n in 0..9 {
        fields.push((format!("x-{n}").into_bytes(), vec![b'v'; 4000]));
    }
    let headers = block(&mut Encoder::default(), &fields, USUAL);
    assert!(headers.len() > MAX_FRAME && headers.len() < 2 * MAX_FRAME + 4);
    let frames: Vec<Frame> = headers
        .chunks(MAX_FRAME)
        .enumerate()
        .map(|(n, part)| frame(if n == 0 { HEADERS } else { CONTINUATION }, 0, 7, part))
        .chain([frame(CONTINUATION, END_HEADERS, 7, &[])])
        .collect();
    let output = repair(&connection(&frames)).unwrap();
    let (repaired, _) = read(&output[PREFACE.len()..]);
    assert!(repaired.len() > 1);
    assert!(repaired.iter().all(|frame| frame.payload.len() <= MAX_FRAME && frame.stream == 7));
    assert_eq!(repaired.iter().filter(|frame| frame.flags & END_HEADERS != 0).count(), 1);
    fields[3].1 = b"localhost".to_vec();
    assert_eq!(lists(&repaired), [fields]);
}

#[test]
fn what_is_not_http2_passes_for_the_server_to_refuse() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\nrest of it",
        b"\x16\x03\x01",
    ] {
        assert_eq!(repair(bytes).unwrap(), bytes);
    }
}

#[test]
fn malformed_connections_end_and_what_came_before_is_kept() {
    let good = block(&mut Encoder::default(), &request("localhost"), USUAL);
    let opened = frame(HEADERS, 0, 1, &good);
    for (frames, expected) in [
        (vec![opened.clone(), frame(DATA, 0, 1, b"x")], Malformed::Interleaved),
        (vec![opened.clone(), frame(HEADERS, END_HEADERS, 3, &good)], Malformed::Interleaved),
        (vec![opened.clone(), frame(CONTINUATION, END_HEADERS, 3, &[])], Malformed::Interleaved),
        (vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[])], Malformed::BadHeaders),
        (vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[5, 1, 2])], Malformed::BadHeaders),
        (vec![frame(HEADERS, END_HEADERS | PRIORITY, 1, &[1, 2, 3, 4])], Malformed::BadHeaders),
        (vec![frame(HEADERS, END_HEADERS, 1, &[0xff])], Malformed::Hpack(HpackError::CutOff)),
        (vec![frame(HEADERS, END_HEADERS, 1, &vec![0; MAX_BLOCK])], Malformed::BlockTooLarge),
    ] {
        let first = frame(SETTINGS, 0, 0, &[]);
        let before = connection(std::slice::from_ref(&first));
        let input = connection(&[vec![first], frames].concat());
        let mut output = Vec::new();
        assert_eq!(Repair::new().feed(&input, &mut output), Err(expected));
        assert_eq!(output, before);
    }
}

#[test]
fn an_endless_header_block_is_cut_off() {
    let mut repair = Repair::new();
    let mut output = Vec::new();
    let headers = block(&mut Encoder::default(), &request("/tmp/x.sock"), USUAL);
    repair.feed(&connection(&[frame(HEADERS, 0, 1, &headers)]), &mut output).unwrap();
    let mut more = Vec::new();
    write(&frame(CONTINUATION, 0, 1, &[]), &mut more);
    let outcome = (0..100_000).find_map(|_| repair.feed(&more, &mut output).err());
    assert_eq!(outcome, Some(Malformed::BlockTooLarge), "empty frames count too");
}

#[tokio::test]
async fn over_a_stream_the_failure_comes_after_the_good_bytes() {
    let (mut client, server) = tokio::io::duplex(64);
    let mut server = AuthorityRepair::new(server);
    let good = connection(&[frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]), frame(DATA, 0, 1, &[7; 500])]);
    let mut bytes = good.clone();
    write(&frame(HEADERS, END_HEADERS, 1, &[0xff]), &mut bytes);
    let writing = tokio::spawn(async move {
        client.write_all(&bytes).await.unwrap();
        client
    });
    let mut seen = vec![0; good.len()];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, good);
    for _ in 0..2 {
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    let mut client = writing.await.unwrap();
    server.write_all(b"bye").await.unwrap();
    drop(server);
    let mut bye = Vec::new();
    client.read_to_end(&mut bye).await.unwrap();
    assert_eq!(bye, b"bye", "writes pass");
}

/// Serves grpc.health.v1 over memory.
fn health_server() -> crate::listen::MemoryDialer {
    let (dialer, incoming) = memory();
    let (_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(plain(incoming))
            .await
            .unwrap();
    });
    dialer
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_its_sockets_path_is_served() {
    let clock = Clock::paused(UNIX_EPOCH);
    let mut io = health_server().dial().unwrap();
    let mut encoder = Encoder::default();
    let mut frames = vec![frame(SETTINGS, 0, 0, &[])];
    // Twice, so that the second request comes from the client's dynamic table.
    for stream in [1, 3] {
        let mut fields = request("/tmp/spire-agent/public/api.sock");
        fields[2].1 = b"/grpc.health.v1.Health/Check".to_vec();
        fields.push((b"content-type".to_vec(), b"application/grpc".to_vec()));
        frames.push(frame(HEADERS, END_HEADERS, stream, &block(&mut encoder, &fields, USUAL)));
        frames.push(frame(DATA, END_STREAM, stream, &[0, 0, 0, 0, 0]));
    }
    io.write_all(&connection(&frames)).await.unwrap();
    let mut received = Vec::new();
    let mut answered = 0;
    while answered < 2 {
        let (frames, _) = read(&received);
        assert!(!frames.iter().any(|frame| frame.kind == 0x3 || frame.kind == 0x7), "reset: {frames:?}");
        // An uncompressed message of two bytes: status = SERVING.
        answered = frames
            .iter()
            .filter(|frame| frame.kind == DATA && frame.payload == [0, 0, 0, 0, 2, 8, 1])
            .count();
        let more = clock.timeout(std::time::Duration::from_secs(60), io.read_buf(&mut received));
        if answered < 2 {
            assert_ne!(more.await.unwrap().unwrap(), 0, "the server hung up");
        }
    }
    // What the server announces is what the decoder was made for.
    let (frames, _) = read(&received);
    let settings = frames.iter().find(|frame| frame.kind == SETTINGS).unwrap();
    assert!(settings.payload.chunks(6).all(|setting| setting[..2] != [0, 1]), "SETTINGS_HEADER_TABLE_SIZE");
}

#[tokio::test(start_paused = true)]
async fn ordinary_clients_are_served() {
    let channel = dial::channel(Dialer::Memory(health_server()), None, "");
    let mut client = HealthClient::new(channel);
    for _ in 0..3 {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.metadata_mut().insert("x-large", "v".repeat(9000).parse().unwrap());
        client.check(request).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_client_is_dropped_and_others_are_not() {
    let dialer = health_server();
    let mut bad = dialer.dial().unwrap();
    bad.write_all(&connection(&[frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, &[0xff])]))
        .await
        .unwrap();
    let mut rest = Vec::new();
    bad.read_to_end(&mut rest).await.unwrap();
    let mut client = HealthClient::new(dial::channel(Dialer::Memory(dialer), None, ""));
    client.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn plain_ends_with_its_listener() {
    let (dialer, incoming) = memory();
    let mut connections = plain(incoming);
    drop(dialer);
    assert!(connections.next().await.is_none());
}

fn padded(payload: &[u8], padding: u8) -> Vec<u8> {
    let mut padded = vec![padding];
    padded.extend_from_slice(payload);
    padded.resize(padded.len() + usize::from(padding), 0);
    padded
}

fn any_list() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let authority = prop::sample::select(vec!["localhost", "a:1", "/tmp/x.sock", "%2Frun%2Fx", ""]);
    let name = prop::sample::select(vec!["te", "x-one", "user-agent", "grpc-timeout", "x-two-bin"]);
    let value = prop_oneof![
        prop::sample::select(vec!["", "trailers", "1S"]).prop_map(str::to_owned),
        "[ -~]{0,300}",
    ];
    let rest = prop::collection::vec((name, value), 0..8);
    (authority, rest).prop_map(|(authority, rest)| {
        let rest = rest.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()));
        request(authority).into_iter().chain(rest).collect()
    })
}

/// What a client sends: requests, each cut into frames in some way, and other frames between them.
#[derive(Clone, Debug)]
enum Sent {
    Request {
        list: Vec<(Vec<u8>, Vec<u8>)>,
        how: u8,
        padding: Option<u8>,
        priority: bool,
        cuts: Vec<prop::sample::Index>,
    },
    Other(Frame),
    TableSize(u32),
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let how = prop::sample::select(vec![
        USUAL,
        0,
        Encoder::BEST_FORMAT,
        Encoder::NEVER_INDEXED,
        Encoder::HUFFMAN_VALUE,
    ]);
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    let request = (any_list(), how, prop::option::of(0_u8..40), any::<bool>(), cuts).prop_map(
        |(list, how, padding, priority, cuts)| Sent::Request { list, how, padding, priority, cuts },
    );
    let kind = any::<u8>().prop_filter("no header block", |kind| *kind != HEADERS && *kind != CONTINUATION);
    let other = (kind, any::<u8>(), 0_u32..100, prop::collection::vec(any::<u8>(), 0..400))
        .prop_map(|(kind, flags, stream, payload)| Sent::Other(Frame { kind, flags, stream, payload }));
    prop_oneof![4 => request, 3 => other, 1 => (0_u32..=4096).prop_map(Sent::TableSize)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_sent_however_cut_arrives_repaired(
        sent in prop::collection::vec(any_sent(), 0..12),
        chunks in prop::collection::vec(1_usize..700, 1..20),
    ) {
        let mut encoder = Encoder::default();
        let mut update = Vec::new();
        let mut frames = Vec::new();
        let mut expected_lists = Vec::new();
        let mut others = Vec::new();
        let mut stream = 1;
        for item in sent {
            match item {
                Sent::Other(other) => {
                    others.push(other.clone());
                    frames.push(other);
                }
                Sent::TableSize(size) => {
                    update.clear();
                    encoder.update_max_dynamic_size(size, &mut update).unwrap();
                }
                Sent::Request { list, how, padding, priority, cuts } => {
                    let mut payload = std::mem::take(&mut update);
                    payload.extend(block(&mut encoder, &list, how));
                    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
                    at.sort_unstable();
                    at.push(payload.len());
                    let mut from = 0;
                    for (n, to) in at.iter().enumerate() {
                        let last = if n + 1 == at.len() { END_HEADERS } else { 0 };
                        let part = &payload[from..*to];
                        from = *to;
                        if n > 0 {
                            frames.push(frame(CONTINUATION, last, stream, part));
                            continue;
                        }
                        let mut flags = last;
                        let mut first = Vec::new();
                        if priority {
                            flags |= PRIORITY;
                            first.extend_from_slice(&[9, 9, 9, 9, 9]);
                        }
                        first.extend_from_slice(part);
                        if let Some(padding) = padding {
                            flags |= PADDED;
                            first = padded(&first, padding);
                        }
                        frames.push(frame(HEADERS, flags, stream, &first));
                    }
                    stream += 2;
                    let repaired = list.into_iter().map(|(name, value)| match name.as_slice() {
                        b":authority" if Authority::try_from(&value[..]).is_err() => (name, b"localhost".to_vec()),
                        _ => (name, value),
                    });
                    expected_lists.push(repaired.collect::<Vec<_>>());
                }
            }
        }
        let input = connection(&frames);
        let mut repair = Repair::new();
        let mut output = Vec::new();
        let mut rest = input.as_slice();
        for size in chunks.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            repair.feed(take(&mut rest, *size), &mut output).unwrap();
        }
        prop_assert!(output.starts_with(PREFACE));
        let (seen, used) = read(&output[PREFACE.len()..]);
        prop_assert_eq!(used, output.len() - PREFACE.len());
        prop_assert_eq!(lists(&seen), expected_lists);
        let is_header = |frame: &&Frame| frame.kind == HEADERS || frame.kind == CONTINUATION;
        let seen_others: Vec<Frame> = seen.iter().filter(|frame| !is_header(frame)).cloned().collect();
        prop_assert_eq!(seen_others, others);
        let order = |frames: &[Frame]| {
            frames.iter().filter(|frame| frame.kind != CONTINUATION).map(|frame| (frame.kind, frame.stream)).collect::<Vec<_>>()
        };
        prop_assert_eq!(order(&seen), order(&frames));
    }

    #[test]
    fn survives_any_bytes_after_the_preface(
        bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..10, 1 => any::<u8>()], 0..600),
    ) {
        let mut input = PREFACE.to_vec();
        input.extend(bytes);
        let mut output = Vec::new();
        let mut repair = Repair::new();
        let _ = repair.feed(&input, &mut output);
        prop_assert!(output.len() <= 4 * input.len() + MAX_BLOCK);
        prop_assert!(repair.frame.len() <= MAX_BLOCK);
    }
}
