//! Compressed payloads.

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8], level: u32) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_payloads_are_expanded() {
    let plain = br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","points":[{"name":"a","t":"text","v":"b"}],"meta":{}}"#;
    for payload in [
        gzip(plain),
        [gzip(&plain[..20]), gzip(&plain[20..])].concat(),
        zlib(plain, 1),
        zlib(plain, 6),
        zlib(plain, 9),
        zstd::encode_all(&plain[..], 3).unwrap(),
        zstd::encode_all(&plain[..], 19).unwrap(),
    ] {
        let (_, content) = decode(TOPIC, &payload);
        assert_eq!(lines(&content), ["a = \"b\" @0"]);
        assert_eq!(content.metadata.unwrap().document, "{}");
        assert_eq!(content.expanded, plain.len());
    }
    for payload in [
        &gzip(plain)[..30],
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        &[gzip(plain), b"x".to_vec()].concat(),
        &zlib(plain, 6)[..20],
        &[zlib(plain, 6), b"x".to_vec()].concat(),
        &[zlib(plain, 6), zlib(plain, 6)].concat(),
        &[zstd::encode_all(&plain[..], 3).unwrap(), b"x".to_vec()].concat(),
    ] {
        assert_eq!(reason(TOPIC, payload), Reason::InvalidCompression);
    }
    // Said by the content type, and not so.
    let input = Input { compression: Some(Compression::Gzip), ..input(TOPIC, plain) };
    let (_, content) = decoder(false).decode(&Reading::Auto, &input);
    assert_eq!(content.rejects[0].reason, Reason::InvalidCompression);
}

#[test]
fn a_bomb_is_too_large() {
    let most = 1 << 20;
    for (size, expected) in
        [(most, Reason::ParseError), (most + 1, Reason::TooLarge), (50 << 20, Reason::TooLarge)]
    {
        let zeros = vec![b' '; size];
        for payload in [gzip(&zeros), zlib(&zeros, 6), zstd::encode_all(&zeros[..], 3).unwrap()] {
            assert!(payload.len() < most, "{} bytes", payload.len());
            assert_eq!(reason(TOPIC, &payload), expected, "{size}");
            let followed = if size > most { expected } else { Reason::InvalidCompression };
            assert_eq!(reason(TOPIC, &[payload, b"x".to_vec()].concat()), followed, "{size}");
        }
    }
}

#[test]
fn content_types_tell_the_compression() {
    for (content_type, expected) in [
        ("application/gzip", Some(Compression::Gzip)),
        ("application/json+gzip; charset=utf-8", Some(Compression::Gzip)),
        ("application/x-gzip", Some(Compression::Gzip)),
        ("Application/ZSTD", Some(Compression::Zstd)),
        ("deflate", Some(Compression::Zlib)),
        ("application/zlib", Some(Compression::Zlib)),
        ("application/json", None),
        ("", None),
    ] {
        assert_eq!(Compression::of_content_type(content_type), expected, "{content_type}");
    }
}
