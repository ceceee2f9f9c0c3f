//! Images without a registry: what the Dockerfile's last stage has, as archives for containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stack;
use crate::stack::process::output;

/// The image with Penstock's programs.
pub const PENSTOCK: &str = "localhost/penstock:test";
/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:test";
/// The programs, as far as they are built.
const PROGRAMS: [&str; 2] = ["penstock-worker", "penstock-operator"];

/// Taken from the Debian root: what the programs need, and a shell for a look inside.
const PACKAGES: &str = "base-files ca-certificates libc6 libgcc-s1 \
    bash coreutils dash grep sed libacl1 libattr1 libcap2 libgmp10 libpcre2-8-0 libselinux1 libssl3t64 libsystemd0 libtinfo6 libzstd1 zlib1g";
/// The same content gives the same layer, which a node already has.
const TAR: &str = "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner";

fn folder() -> PathBuf {
    stack::folder().join("image")
}

/// The image of Penstock with what is in target/release now.
pub fn penstock(root: &Path) -> Result<PathBuf> {
    let release = stack::project().join("target/release");
    let built: Vec<PathBuf> =
        PROGRAMS.iter().map(|name| release.join(name)).filter(|path| path.exists()).collect();
    ensure!(!built.is_empty(), "none of {PROGRAMS:?} is in {}", release.display());
    let content = folder().join("programs");
    let bin = content.join("usr/local/bin");
    if content.exists() {
        fs::remove_dir_all(&content)?;
    }
    fs::create_dir_all(&bin)?;
    for program in built {
        let name = program.file_name().context("a program's name")?;
        output(Command::new("strip").arg("-o").arg(bin.join(name)).arg(&program))?;
    }
    let layer = folder().join("programs.tar");
    output(shell(&format!("{TAR} -C \"$1\" -cf \"$2\" .")).arg(&content).arg(&layer))?;
    archive("penstock", PENSTOCK, &[base(root)?, layer], &json!({"User": "65532:65532"}))
}

/// The image for pods' namespaces: it sleeps.
pub fn pause(root: &Path) -> Result<PathBuf> {
    let command = json!({"User": "65532:65532", "Entrypoint": ["/usr/bin/sleep", "infinity"]});
    archive("pause", PAUSE, &[base(root)?], &command)
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-euc", script, "sh"]);
    shell
}

/// The lowest layer, made once for these packages.
fn base(root: &Path) -> Result<PathBuf> {
    let (layer, made_of) = (folder().join("base.tar"), folder().join("base.packages"));
    if !layer.exists() || fs::read_to_string(&made_of).ok().as_deref() != Some(PACKAGES) {
        fs::create_dir_all(folder())?;
        let partial = layer.with_extension("partial");
        let list = format!(
            "{{ chroot \"$1\" dpkg -L {PACKAGES} | grep -vE '^/usr/share/(doc|man|locale|info|bug|lintian)/|^/\\.$'; \
             echo /etc/ssl/certs/ca-certificates.crt; }} | sort -u | sed 's,^/,,' | \
             {TAR} -C \"$1\" --no-recursion -T - -cf \"$2\""
        );
        output(shell(&list).arg(root).arg(&partial)).context("making the base of images")?;
        fs::rename(partial, &layer)?;
        fs::write(made_of, PACKAGES)?;
    }
    Ok(layer)
}

/// An archive as the OCI's image layout has it.
fn archive(name: &str, image: &str, layers: &[PathBuf], config: &Value) -> Result<PathBuf> {
    let layout = folder().join(name);
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layers = layers
        .iter()
        .map(|layer| blob(&blobs, layer, "application/vnd.oci.image.layer.v1.tar"))
        .collect::<Result<Vec<_>>>()?;
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let config = json_blob(&blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = json_blob(&blobs, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    manifest["annotations"] = json!({"io.containerd.image.name": image});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let (archived, partial) =
        (folder().join(format!("{name}.tar")), folder().join(format!("{name}.partial")));
    output(shell(&format!("{TAR} -C \"$1\" -cf \"$2\" .")).arg(&layout).arg(&partial))?;
    fs::rename(partial, &archived)?;
    Ok(archived)
}

fn json_blob(blobs: &Path, content: &Value, media_type: &str) -> Result<Value> {
    let file = blobs.join("new");
    fs::write(&file, content.to_string())?;
    let descriptor = blob(blobs, &file, media_type)?;
    fs::remove_file(file)?;
    Ok(descriptor)
}

/// Puts a file under its digest.
fn blob(blobs: &Path, file: &Path, media_type: &str) -> Result<Value> {
    let said = output(Command::new("sha256sum").arg(file))?;
    let digest = said.split_whitespace().next().context("sha256sum says nothing")?.to_owned();
    let path = blobs.join(&digest);
    if !path.exists() {
        fs::hard_link(file, &path)?;
    }
    Ok(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digest}"),
        "size": fs::metadata(&path)?.len(),
    }))
}
