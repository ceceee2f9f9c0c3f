//! How a cache keeps an object: as text that is compressed, which takes a small part of the memory of a tree.

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
    /// None if it cannot be written as text.
    pub fn pack(mut object: DynamicObject) -> Option<Self> {
        let version = object.metadata.resource_version.take();
        let text = serde_json::to_vec(&object).ok()?;
        let packed = zstd::bulk::compress(&text, FASTEST).ok()?;
        Some(Self { version, packed: packed.into(), length: text.len() })
    }

    /// The object, with its version.
    pub fn unpack(&self, decompressor: &mut Decompressor<'_>) -> Option<DynamicObject> {
        let text = decompressor.decompress(&self.packed, self.length).ok()?;
        let mut object: DynamicObject = serde_json::from_slice(&text).ok()?;
        object.metadata.resource_version.clone_from(&self.version);
        Some(object)
    }
}
