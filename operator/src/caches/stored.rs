//! How a cache keeps an object: as text that is compressed, which takes a small part of the memory of a tree.

use std::io;

use kube::api::DynamicObject;
use zstd::bulk::Decompressor;

/// Zstandard's level.
const FASTEST: i32 = 1;

/// An object. Equal ones are packed alike.
#[derive(Debug)]
pub struct Stored {
    /// Apart, since it changes with what the operator does not keep, too.
    pub version: Option<String>,
    /// Its text, compressed.
    pub packed: Box<[u8]>,
    /// Bytes of the text.
    length: usize,
}

impl Stored {
    /// One that cannot be packed is kept as nothing, so that who reads it gets the error.
    pub fn pack(mut object: DynamicObject) -> Self {
        let version = object.metadata.resource_version.take();
        let text = serde_json::to_vec(&object).unwrap_or_default();
        let packed = zstd::bulk::compress(&text, FASTEST).unwrap_or_default();
        Self { version, packed: packed.into(), length: text.len() }
    }

    /// The object, with its version.
    pub fn unpack(&self, decompressor: &mut Decompressor<'_>) -> io::Result<DynamicObject> {
        let text = decompressor.decompress(&self.packed, self.length)?;
        let mut object: DynamicObject = serde_json::from_slice(&text)?;
        object.metadata.resource_version.clone_from(&self.version);
        Ok(object)
    }
}
