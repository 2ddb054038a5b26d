//! Requests and messages that nobody sane sends.

use bytes::{Buf, BufMut, Bytes};
use finial_daemon::dial;
use finial_tests::world::World;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn call(channel: &Channel, path: &str, body: Bytes) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    Ok(client.unary(Request::new(body), path, Raw).await?.into_inner())
}

/// Every method, called with truncated, oversized and random bytes: a clear status, and the server lives.
#[tokio::test(start_paused = true)]
async fn no_method_falls_over_garbage() {
    let world = World::new().await;
    let network = dial::channel(world.network(), Some(insecure()), "localhost");
    let truncated = Bytes::from_static(&[0x0a, 0xff, 0x7f, 0x01]);
    let noise: Bytes =
        (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into();
    let oversized: Bytes = vec![0x0a; 5 * 1024 * 1024].into();
    for (service, method) in finial_proto::methods() {
        let path = format!("/{service}/{method}");
        for (what, body) in [("truncated", &truncated), ("noise", &noise), ("oversized", &oversized)] {
            for channel in [&world.admin(), &network] {
                let Err(status) = call(channel, &path, body.clone()).await else {
                    panic!("{path} took {what} bytes for a request");
                };
                assert!(
                    !matches!(status.code(), Code::Ok | Code::Unknown | Code::Unavailable),
                    "{path}, {what}: {status}"
                );
            }
        }
    }
    world.register("node", "still-works", &["unix:uid:1".to_owned()]).await;
}

/// TLS settings that believe anybody and present nothing.
fn insecure() -> dial::TlsSource {
    let trust_domain = finial_tests::world::trust_domain();
    let clock = finial_daemon::clock::Clock::paused(World::beginning());
    finial_agent::own_svid::Identity::new(trust_domain, finial_agent::own_svid::Trust::FirstMet, clock)
        .anonymous()
}
