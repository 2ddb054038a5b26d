//! Calls as bytes: for what typed clients can not say, and for asking any method by its name.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a stream may be silent before it counts as open.
const SILENCE: Duration = Duration::from_secs(5);

/// Calls `path` (`/package.Service/Method`) with one message, whatever kind of method it is, and returns the first
/// message of the answer: None when a stream ends without one, or stays open and silent.
pub async fn call(
    channel: &Channel,
    path: &str,
    body: impl Into<Bytes>,
    metadata: &[(&str, &str)],
) -> Result<Option<Bytes>, Status> {
    exchange(channel, path, vec![body.into()], metadata).await
}

/// [`call`] with any number of messages.
pub async fn exchange(
    channel: &Channel,
    path: &str,
    bodies: Vec<Bytes>,
    metadata: &[(&str, &str)],
) -> Result<Option<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    let mut request = Request::new(futures::stream::iter(bodies));
    for (key, value) in metadata {
        let key = AsciiMetadataKey::from_bytes(key.as_bytes()).unwrap();
        request.metadata_mut().append(key, AsciiMetadataValue::try_from(*value).unwrap());
    }
    // On the wire a single message is a stream of one.
    let mut answers = client.streaming(request, path, Raw).await?.into_inner();
    tokio::time::timeout(SILENCE, answers.message()).await.unwrap_or(Ok(None))
}

/// Sends and receives bytes as they are.
#[derive(Clone, Copy, Default)]
pub struct Raw;

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
