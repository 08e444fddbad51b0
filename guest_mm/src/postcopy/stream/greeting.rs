//! The first message of each side.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::StreamError;
use crate::postcopy::wire::{Hello, Welcome};

/// Says hello and waits for the answer: the version that the sink has chosen. There is no deadline.
///
/// # Errors
/// [`StreamError::Refused`] with the sink's reason; what else can go wrong with a stream.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    hello: &Hello,
) -> Result<u16, StreamError> {
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    match read_welcome(stream).await? {
        Welcome::Chosen(version) if hello.versions.contains(version) => Ok(version),
        Welcome::Chosen(chosen) => Err(StreamError::Version { chosen, offered: hello.versions }),
        Welcome::Refused(refusal, reason) => Err(StreamError::Refused(refusal, reason)),
    }
}

/// Waits for a hello. There is no deadline.
///
/// # Errors
/// What can go wrong with a stream; [`StreamError::Closed`] if the peer went without a word.
pub async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, StreamError> {
    let mut bytes = [0; Hello::BYTES];
    let first = stream.read(&mut bytes).await?;
    if first == 0 {
        return Err(StreamError::Closed);
    }
    exact(stream, &mut bytes[first..]).await?;
    Ok(Hello::decode(&bytes)?)
}

/// Answers a hello.
///
/// # Errors
/// If the connection breaks.
pub async fn write_welcome<S: AsyncWrite + Unpin>(
    stream: &mut S,
    welcome: &Welcome,
) -> Result<(), StreamError> {
    stream.write_all(&welcome.encode()).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_welcome<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Welcome, StreamError> {
    let mut fixed = [0; Welcome::FIXED];
    let first = stream.read(&mut fixed).await?;
    if first == 0 {
        return Err(StreamError::Closed);
    }
    exact(stream, &mut fixed[first..]).await?;
    let mut bytes = fixed.to_vec();
    bytes.resize(fixed.len() + Welcome::reason_bytes(&fixed)?, 0);
    exact(stream, &mut bytes[fixed.len()..]).await?;
    Ok(Welcome::decode(&bytes)?)
}

async fn exact<S: AsyncRead + Unpin>(stream: &mut S, into: &mut [u8]) -> Result<(), StreamError> {
    match stream.read_exact(into).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StreamError::CutShort),
        Err(error) => Err(error.into()),
    }
}
