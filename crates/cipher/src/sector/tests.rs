//! Published vectors, all implementations against the portable one, and refusals.
// UNSAFETY: calls the raw interface with two separate buffers.

use proptest::prelude::*;

use super::*;
use crate::Algorithm::{Aes128XtsPlain64, Aes256XtsPlain64};
use crate::{Algorithm, CipherError, Implementation, implementations, sector_cipher};
use sealblk_secret::SecretBytes;

fn cipher_of(
    algorithm: Algorithm,
    key: &[u8],
    sector_bytes: u32,
    which: Implementation,
) -> Box<dyn SectorCipher> {
    let key = SecretBytes::copy_from(key).unwrap();
    sector_cipher(algorithm, &key, sector_bytes, which).unwrap()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Key, data unit sequence number, plaintext, ciphertext. The data units are shorter than a sector;
/// but without ciphertext stealing an XTS block depends on its position only, so they are the
/// beginning of a sector that starts with the same plaintext.
type Vector = (Algorithm, &'static str, u64, &'static str, &'static str);

/// NIST CAVP, XTSTestVectors.zip, "format data unit seq number": XTSGenAES128.rsp, XTSGenAES256.rsp.
const NIST: [Vector; 8] = [
    (
        Aes128XtsPlain64,
        "a3e40d5bd4b6bbedb2d18c700ad2db2210c81190646d673cbca53f133eab373c",
        141,
        "20e0719405993f09a66ae5bb500e562c",
        "74623551210216ac926b9650b6d3fa52",
    ),
    (
        Aes128XtsPlain64,
        "a2ed35e8d082f5e13e78c1d42acf33cf70e82821a666b2a7606542e43a631226",
        75,
        "2d81dcdec507845dcac4af1594aac844",
        "050dc32995cf6cd87224dfa2572709f4",
    ),
    (
        Aes128XtsPlain64,
        "69438582e0a61b5e7a023adf2f419630ed537ccf9a4b2e09010eaf7b66bcf818",
        232,
        "05c2c05e812bc4295f3ef64c8bc468ee946176449edc481785e6c6d9fbdd6b8f",
        "27259ec330a66591e265525cd1eb5017ba195a390e4f66ddfb7c1a4b0fb5e49d",
    ),
    (
        Aes128XtsPlain64,
        "f5409a68908c710aacc31a223ef7911db3202772edd955663a75292d9384ca2c",
        100,
        "ce1a975b08eec5a005708cd4113a701fb0377b14b59e70dc06fe6941121f16a2",
        "39d7b54434622b53a78529043bffa0f637e46a79c880cae70c67b1f2077e1932",
    ),
    (
        Aes256XtsPlain64,
        "ef010ca1a3663e32534349bc0bae62232a1573348568fb9ef41768a7674f507a\
         727f98755397d0e0aa32f830338cc7a926c773f09e57b357cd156afbca46e1a0",
        187,
        "ed98e01770a853b49db9e6aaf88f0a41b9b56e91a5a2b11d40529254f5523e75",
        "ca20c55e8dc149687d2541de39c3df6300bb5a163c10ced3666b1357db8bd39d",
    ),
    (
        Aes256XtsPlain64,
        "c4e6b37e1075969d41a7601aa105dd41b18200a028da1f79f55c4d2db478c4e9\
         8d9ed491cfe52f31ecb7cbb4891eb779e057392b3b27c19cbe9b4875c8c31c22",
        223,
        "87ede402d0561359799a41be042ced9a8e15639165ef1a4d2f6785c394d61e5f",
        "a51037198f3f9fe5d05bef52363acec40e86e3abb834180348d2e08627733e65",
    ),
    (
        Aes256XtsPlain64,
        "f6db5326ea996b16ca0d439b5a0106e3a34ed343db489faad06979009399b03b\
         3cd9ef23332d46414216531d9885a5a30b1964523992f42748202b80a4190d45",
        245,
        "bf6a09f93f94d6bdc8c5f5e158916c3371a540e46644f79414d84dda1339397c\
         e90ebb768deeb88ecd2be175a396bb85",
        "b11a252c5776c439ea7baeaae7830418e574b2248cc8b524b7fd0cc8e1ecffa9\
         812f45ae313e3e1f44127b27fb08a613",
    ),
    (
        Aes256XtsPlain64,
        "182614c12c49df2a50b8f9e985e9674253f141c17b6d440fcbbe4319d7034a87\
         fe4db5c45e54086f62fde76999099fa71a3aae56c6a3220e226ccc2147f83a4f",
        185,
        "e6f5621b062241c835e6fed103c089c782ceeab7035f4c6bb47bc35416599174\
         b53608918c3ee5da1ab9736d8c8decc3",
        "9b2e2eef1b8c24a78f8ed47a0d30d8c8badbf70cf138292dfc2d3dc211aabc2e\
         4ec0ef36c94e0505255e3acc5e13943a",
    ),
];

/// The plaintext of [`IEEE`] begins like this.
const COUNTING: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const IEEE_128: &str = "2718281828459045235360287471352631415926535897932384626433832795";
const IEEE_256: &str = "2718281828459045235360287471352662497757247093699959574966967627\
                        3141592653589793238462643383279502884197169399375105820974944592";

/// IEEE Std 1619-2007 annex B, vectors 4, 10, 13 and 14 (the beginning of each ciphertext): tweaks
/// of up to 40 bits.
const IEEE: [Vector; 4] = [
    (
        Aes128XtsPlain64,
        IEEE_128,
        0,
        COUNTING,
        "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
    ),
    (
        Aes256XtsPlain64,
        IEEE_256,
        0xff,
        COUNTING,
        "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
    ),
    (
        Aes256XtsPlain64,
        IEEE_256,
        0xffff_ffff,
        COUNTING,
        "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5",
    ),
    (
        Aes256XtsPlain64,
        IEEE_256,
        0xff_ffff_ffff,
        COUNTING,
        "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23",
    ),
];

#[test]
fn published_vectors_come_out_of_every_implementation() {
    for (algorithm, key, number, plain, sealed) in NIST.into_iter().chain(IEEE) {
        let (plain, sealed) = (unhex(plain), unhex(sealed));
        for which in implementations(algorithm) {
            for sector_bytes in [512, 4096] {
                let mut cipher = cipher_of(algorithm, &unhex(key), sector_bytes, which);
                let mut sector = vec![0x5a; sector_bytes as usize];
                sector[..plain.len()].copy_from_slice(&plain);
                let original = sector.clone();
                encrypt_in_place(&mut *cipher, number, &mut sector);
                assert_eq!(sector[..sealed.len()], sealed, "{which} {algorithm} at {number}");
                decrypt_in_place(&mut *cipher, number, &mut sector);
                assert!(sector == original, "{which} {algorithm} at {number}");
            }
        }
    }
}

/// Starts of runs: anywhere, around 2^32 sectors (2 TiB), and where the counter wraps.
fn any_iv() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..100_u64,
        (1_u64 << 32) - 40..(1 << 32) + 40,
        u64::MAX - 40..=u64::MAX
    ]
}

fn any_sector_bytes() -> impl Strategy<Value = u32> {
    prop_oneof![Just(512), Just(1024), Just(2048), Just(4096)]
}

proptest! {
    #[test]
    fn the_implementations_agree(
        key in proptest::collection::vec(any::<u8>(), 64),
        iv in any_iv(),
        sector_bytes in any_sector_bytes(),
        sectors in 0..20_usize,
        (from, to) in (0..64_usize, 0..64_usize),
        seed in any::<u8>(),
    ) {
        let len = sectors * sector_bytes as usize;
        let plain: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect();
        for algorithm in [Aes128XtsPlain64, Aes256XtsPlain64] {
            let key = &key[..algorithm.key_bytes()];
            let mut oracle = cipher_of(algorithm, key, sector_bytes, Implementation::Portable);
            let (mut sealed, mut opened) = (plain.clone(), plain.clone());
            encrypt_in_place(&mut *oracle, iv, &mut sealed);
            decrypt_in_place(&mut *oracle, iv, &mut opened);
            prop_assert!(sectors == 0 || sealed != plain);
            for which in implementations(algorithm) {
                let mut cipher = cipher_of(algorithm, key, sector_bytes, which);
                let mut buffer = plain.clone();
                encrypt_in_place(&mut *cipher, iv, &mut buffer);
                prop_assert!(buffer == sealed, "{which} {algorithm}");
                decrypt_in_place(&mut *cipher, iv, &mut buffer);
                prop_assert!(buffer == plain, "{which} {algorithm}");
                decrypt_in_place(&mut *cipher, iv, &mut buffer);
                prop_assert!(buffer == opened, "{which} {algorithm}");
                // Out of place, between memory of any alignment, and not a byte beyond.
                let mut source = vec![0x55; from];
                source.extend_from_slice(&plain);
                let mut target = vec![0xaa_u8; to + len + 64];
                let (src, dst) = (source[from..].as_ptr(), target[to..].as_mut_ptr());
                // SAFETY: two buffers of their own, with `len` bytes behind either offset.
                unsafe { cipher.encrypt(iv, src, dst, len) };
                prop_assert!(target[to..to + len] == sealed, "{which} {algorithm}");
                // SAFETY: as above.
                unsafe { cipher.decrypt(iv, src, dst, len) };
                prop_assert!(target[to..to + len] == opened, "{which} {algorithm}");
                prop_assert!(source[from..] == plain);
                let around = target[..to].iter().chain(&target[to + len..]);
                prop_assert!(around.copied().all(|byte| byte == 0xaa), "{which} {algorithm}");
            }
        }
    }

    #[test]
    fn a_run_of_sectors_is_each_sector_by_itself(
        iv in any_iv(),
        sector_bytes in any_sector_bytes(),
        sectors in 1..12_usize,
    ) {
        for algorithm in [Aes128XtsPlain64, Aes256XtsPlain64] {
            let key: Vec<u8> = (0..algorithm.key_bytes()).map(|i| i as u8).collect();
            for which in implementations(algorithm) {
                let mut cipher = cipher_of(algorithm, &key, sector_bytes, which);
                let bytes = sector_bytes as usize;
                let mut run = vec![7u8; sectors * bytes];
                let mut singly = run.clone();
                encrypt_in_place(&mut *cipher, iv, &mut run);
                let mut sector_iv = iv;
                for sector in singly.chunks_exact_mut(bytes) {
                    encrypt_in_place(&mut *cipher, sector_iv, sector);
                    // The tweak counts 512-byte units whatever the sector.
                    sector_iv = sector_iv.wrapping_add(u64::from(sector_bytes) / 512);
                }
                prop_assert!(run == singly);
            }
        }
    }
}

#[test]
fn the_tweak_does_not_wrap_at_two_tebibytes() {
    let key: Vec<u8> = (0..64).collect();
    for which in implementations(Aes256XtsPlain64) {
        let mut cipher = cipher_of(Aes256XtsPlain64, &key, 512, which);
        let (mut low, mut high) = (vec![0u8; 512], vec![0u8; 512]);
        encrypt_in_place(&mut *cipher, 5, &mut low);
        encrypt_in_place(&mut *cipher, 5 + (1 << 32), &mut high);
        assert_ne!(low, high);
    }
}

#[test]
fn unsuitable_keys_and_sizes_are_refused() {
    let good: Vec<u8> = (0..64).collect();
    let ask = |algorithm, key: &[u8], sector_bytes, which| {
        let key = SecretBytes::copy_from(key).unwrap();
        sector_cipher(algorithm, &key, sector_bytes, which).err()
    };
    for which in [Implementation::Auto, Implementation::Portable] {
        assert!(matches!(
            ask(Aes256XtsPlain64, &good[..32], 512, which),
            Some(CipherError::KeyLength { algorithm: Aes256XtsPlain64, got_bytes: 32 })
        ));
        assert!(matches!(
            ask(Aes256XtsPlain64, &[9; 64], 512, which),
            Some(CipherError::EqualKeyHalves)
        ));
        for size in [0, 1, 256, 513, 768, 8192] {
            assert!(matches!(
                ask(Aes256XtsPlain64, &good, size, which),
                Some(CipherError::SectorSize(refused)) if refused == size
            ));
        }
    }
    assert!(matches!(
        ask(Aes128XtsPlain64, &good[..32], 512, Implementation::AwsLc),
        Some(CipherError::Unavailable { which: Implementation::AwsLc, .. })
    ));
}

#[test]
#[should_panic(expected = "whole encryption sectors")]
fn a_partial_sector_is_a_broken_invariant() {
    let key: Vec<u8> = (0..64).collect();
    let mut cipher = cipher_of(Aes256XtsPlain64, &key, 4096, Implementation::Auto);
    encrypt_in_place(&mut *cipher, 0, &mut [0; 512]);
}
