//! What others make of our volumes: cryptsetup and qemu-img decrypt them, without device-mapper.
//!
//! cryptsetup opens no volume without device-mapper, but it *re-encrypts* one in user space, to
//! nothing too. So its header is copied out, the data segment in the copy moved to offset 0, and
//! `cryptsetup reencrypt --decrypt` run with that detached header on a copy of the data.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::programs::run;
use crate::volume::{Scratch, TestVolume};

/// The binary part of a LUKS2 header (LUKS2 on-disk format 1.1.1, section 2.1).
const BINARY: usize = 4096;
const HDR_SIZE_AT: usize = 8;
const CHECKSUM_AT: usize = 448;

/// The plaintext of a LUKS2 volume according to cryptsetup.
pub fn cryptsetup_decrypts(volume: &TestVolume) -> Result<Vec<u8>> {
    let scratch = Scratch::new()?;
    let (header, data) = (scratch.file("header"), scratch.file("data"));
    let raw = volume.raw()?;
    let mut image = File::open(&raw)?;
    let offset = data_offset(&raw)?;
    let mut front = vec![0; usize::try_from(offset)?];
    image.read_exact(&mut front)?;
    move_segment_to_start(&mut front)?;
    std::fs::write(&header, &front)?;
    image.seek(SeekFrom::Start(offset))?;
    std::io::copy(&mut image, &mut File::create(&data)?)?;
    let args: [OsString; 9] = [
        "reencrypt".into(),
        "--decrypt".into(),
        "--header".into(),
        header.into(),
        "--force-offline-reencrypt".into(),
        "--batch-mode".into(),
        "--key-file".into(),
        volume.key.clone().into(),
        data.clone().into(),
    ];
    run("cryptsetup", args)?;
    Ok(std::fs::read(data)?)
}

/// The plaintext of a LUKS1 volume according to qemu-img.
pub fn qemu_img_decrypts(volume: &TestVolume) -> Result<Vec<u8>> {
    let scratch = Scratch::new()?;
    let plain = scratch.file("plain");
    let secret = format!("secret,id=s,file={}", volume.key.display());
    let source = format!("driver=luks,key-secret=s,file.filename={}", volume.raw()?.display());
    let args = ["convert", "--object", &secret, "--image-opts", &source, "-O", "raw"];
    run("qemu-img", args.iter().map(OsString::from).chain([plain.clone().into()]))?;
    Ok(std::fs::read(plain)?)
}

/// The volume key according to cryptsetup.
pub fn volume_key(volume: &TestVolume) -> Result<Vec<u8>> {
    let args: [OsString; 6] = [
        "luksDump".into(),
        "--dump-volume-key".into(),
        "--batch-mode".into(),
        "--key-file".into(),
        volume.key.clone().into(),
        volume.raw()?.into(),
    ];
    let output = run("cryptsetup", args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The key follows "MK dump:" in hexadecimal bytes, over several indented lines.
    let (_, dump) = text.split_once("MK dump:").context("no key in cryptsetup's dump")?;
    let digits: Vec<u8> = dump.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(byte).collect()
}

/// Offset of the data in bytes, from the header's JSON or LUKS1's payload offset.
pub fn data_offset(image: &Path) -> Result<u64> {
    let mut front = vec![0; 16 << 10];
    File::open(image)?.read_exact(&mut front)?;
    if front.get(6..8) == Some(&[0, 1]) {
        let sectors = front.get(104..).and_then(<[u8]>::first_chunk).context("short header")?;
        return Ok(u64::from(u32::from_be_bytes(*sectors)) * 512);
    }
    let json: Value = json_of(&front)?;
    let offset = json.pointer("/segments/0/offset").and_then(Value::as_str);
    Ok(offset.context("no segment 0")?.parse()?)
}

/// The JSON of the header copy that starts here.
fn json_of(copy: &[u8]) -> Result<Value> {
    let text = copy.get(BINARY..).context("short header")?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(serde_json::from_slice(&text[..end])?)
}

/// Sets segment 0's offset to 0 in both copies.
fn move_segment_to_start(front: &mut [u8]) -> Result<()> {
    change_json(front, &|json| {
        *json.pointer_mut("/segments/0/offset").context("no segment 0")? = "0".into();
        Ok(())
    })
}

/// Changes the JSON of both header copies of an image, and makes their checksums right again.
pub fn change_json(image: &mut [u8], change: &dyn Fn(&mut Value) -> Result<()>) -> Result<()> {
    let size = image.get(HDR_SIZE_AT..).and_then(<[u8]>::first_chunk).context("short header")?;
    let size = usize::try_from(u64::from_be_bytes(*size))?;
    ensure!(image.len() >= 2 * size, "the header is larger than the image");
    for copy in image[..2 * size].chunks_exact_mut(size) {
        let mut json = json_of(copy)?;
        change(&mut json)?;
        let text = serde_json::to_vec(&json)?;
        copy[BINARY..].fill(0);
        copy[BINARY..BINARY + text.len()].copy_from_slice(&text);
        copy[CHECKSUM_AT..CHECKSUM_AT + 64].fill(0);
        let checksum = Sha256::digest(&*copy);
        copy[CHECKSUM_AT..CHECKSUM_AT + 32].copy_from_slice(&checksum);
    }
    Ok(())
}
