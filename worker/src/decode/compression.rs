//! Payloads that were compressed: recognized, and expanded within a limit.

use std::io::{self, Read};

use super::reject::{Reason, Reject};

/// The largest zstd window, as a power of 2: what RFC 8878 §3.1.1.1.2 recommends to support.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// Deflate in the format of zlib (RFC 1950).
    Zlib,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// By the content type of MQTT 5: `application/gzip`, `application/json+zstd`, `deflate` and so on.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let word = essence.rsplit(['/', '+']).next().unwrap_or_default().to_ascii_lowercase();
        match word.as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zlib" | "deflate" => Some(Self::Zlib),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By the payload's first bytes. No format begins so, except text with `x^`, which zlib data need not be.
    pub fn of_payload(payload: &[u8]) -> Option<Self> {
        match payload {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] if std::str::from_utf8(payload).is_err() => {
                Some(Self::Zlib)
            }
            _ => None,
        }
    }

    /// The payload expanded to at most so many bytes. No more are ever made.
    pub fn expand(self, payload: &[u8], most: usize) -> Result<Vec<u8>, Reject> {
        let mut expanded = Vec::new();
        let read = match self {
            Self::Gzip => bounded(flate2::read::MultiGzDecoder::new(payload), most, &mut expanded),
            Self::Zlib => {
                let mut decoder = flate2::bufread::ZlibDecoder::new(payload);
                bounded(&mut decoder, most, &mut expanded).and_then(|()| {
                    // The other decoders look for more data behind the end; this one leaves what is there.
                    let rest = decoder.into_inner().len();
                    if rest == 0 || expanded.len() > most {
                        return Ok(());
                    }
                    Err(io::Error::other(format!("it is followed by {rest} more bytes")))
                })
            }
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(payload).and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                bounded(decoder, most, &mut expanded)
            }),
        };
        read.map_err(|error| {
            let detail = format!("the payload is no good {}: {error}", self.name());
            Reject::whole(Reason::InvalidCompression, &detail)
        })?;
        if expanded.len() > most {
            let detail = format!(
                "the payload expands to more than the {most} bytes that spec.source.mqtt.maxPacketSize allows"
            );
            return Err(Reject::whole(Reason::TooLarge, &detail));
        }
        Ok(expanded)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

fn bounded(reader: impl Read, most: usize, expanded: &mut Vec<u8>) -> io::Result<()> {
    reader.take(most as u64 + 1).read_to_end(expanded).map(drop)
}
