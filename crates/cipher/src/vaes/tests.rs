//! The algorithm at every width on any CPU with AES instructions, each width's instructions where
//! the CPU has them, and broken kernels that the self-test must catch.
// UNSAFETY: a software model of a vector, made of AES instructions.

use std::arch::x86_64::{
    __m128i, _mm_aesdec_si128, _mm_aesdeclast_si128, _mm_aesenc_si128, _mm_aesenclast_si128,
};
use std::mem::transmute;

use super::kernel::{IN_FLIGHT, Wide, run};
use super::schedule::{Block, rounds};
use super::*;
use crate::Algorithm::{Aes128XtsPlain64, Aes256XtsPlain64};
use crate::{decrypt_in_place, encrypt_in_place, portable};

/// `block` times x in GF(2^128), as IEEE 1619 section 5.2 writes it.
fn times_x(block: u128) -> u128 {
    block << 1 ^ if block >> 127 == 1 { 0x87 } else { 0 }
}

fn times_x_to(block: u128, power: usize) -> u128 {
    (0..power).fold(block, |block, _| times_x(block))
}

/// What a vector of so many lanes does, one lane at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Model<const LANES: usize>([u128; LANES]);

fn m128(block: u128) -> __m128i {
    // SAFETY: any 16 bytes are a vector.
    unsafe { transmute(block) }
}

fn number(vector: __m128i) -> u128 {
    // SAFETY: any vector is 16 bytes.
    unsafe { transmute(vector) }
}

impl<const LANES: usize> Model<LANES> {
    fn with(self, key: Self, round: impl Fn(__m128i, __m128i) -> __m128i) -> Self {
        Self(std::array::from_fn(|i| number(round(m128(self.0[i]), m128(key.0[i])))))
    }
}

impl<const LANES: usize> Wide for Model<LANES> {
    const LANES: usize = LANES;

    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { from.cast::<[u128; LANES]>().read_unaligned() })
    }
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[u128; LANES]>().write_unaligned(self.0) };
    }
    unsafe fn broadcast(from: *const Block) -> Self {
        // SAFETY: the caller's.
        Self([u128::from_le_bytes(unsafe { *from }); LANES])
    }
    unsafe fn counters(first: u64, step: u64) -> Self {
        Self(std::array::from_fn(|i| first.wrapping_add(step.wrapping_mul(i as u64)).into()))
    }
    unsafe fn xor(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] ^ other.0[i]))
    }
    unsafe fn encrypt_round(self, key: Self) -> Self {
        // SAFETY: the CPU has AES.
        self.with(key, |block, key| unsafe { _mm_aesenc_si128(block, key) })
    }
    unsafe fn encrypt_last(self, key: Self) -> Self {
        // SAFETY: the CPU has AES.
        self.with(key, |block, key| unsafe { _mm_aesenclast_si128(block, key) })
    }
    unsafe fn decrypt_round(self, key: Self) -> Self {
        // SAFETY: the CPU has AES.
        self.with(key, |block, key| unsafe { _mm_aesdec_si128(block, key) })
    }
    unsafe fn decrypt_last(self, key: Self) -> Self {
        // SAFETY: the CPU has AES.
        self.with(key, |block, key| unsafe { _mm_aesdeclast_si128(block, key) })
    }
    unsafe fn spread(tweak: *const Block, index: usize) -> Self {
        // SAFETY: the caller's.
        let tweak = u128::from_le_bytes(unsafe { *tweak });
        Self(std::array::from_fn(|lane| times_x_to(tweak, index * LANES + lane)))
    }
    unsafe fn advance(self) -> Self {
        Self(self.0.map(|tweak| times_x_to(tweak, IN_FLIGHT * LANES)))
    }
}

fn key_of(algorithm: Algorithm) -> SecretBytes {
    let bytes: Vec<u8> = (0..algorithm.key_bytes()).map(|i| (i * 7 + 3) as u8).collect();
    SecretBytes::copy_from(&bytes).unwrap()
}

fn data_of(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect()
}

/// The kernel's algorithm at a width that no instruction has a part in, but for AES itself.
fn the_algorithm_is_right_at<const LANES: usize>() {
    if !is_x86_feature_detected!("aes") || !is_x86_feature_detected!("sse4.1") {
        return;
    }
    let kernels: [(Algorithm, Run, Run); 2] = [
        (Aes128XtsPlain64, run::<Model<LANES>, 10, true>, run::<Model<LANES>, 10, false>),
        (Aes256XtsPlain64, run::<Model<LANES>, 14, true>, run::<Model<LANES>, 14, false>),
    ];
    for (algorithm, encrypt, decrypt) in kernels {
        let key = key_of(algorithm);
        // SAFETY: the CPU has AES.
        let schedule = unsafe { Schedule::new(algorithm, &key) }.unwrap();
        let mut cipher = Vaes { schedule, encrypt, decrypt, name: "model", sector_bytes: 0 };
        for sector_bytes in [512, 1024, 2048, 4096] {
            cipher.sector_bytes = sector_bytes;
            let mut oracle = portable::new(algorithm, &key, sector_bytes).unwrap();
            for sectors in [1, 2, 7, 8, 9, 17] {
                let data = data_of(sectors * sector_bytes);
                for iv in [0, (1 << 32) - 9, u64::MAX - 20] {
                    let (mut got, mut expected) = (data.clone(), data.clone());
                    encrypt_in_place(&mut cipher, iv, &mut got);
                    encrypt_in_place(&mut *oracle, iv, &mut expected);
                    assert!(got == expected, "{algorithm} {sector_bytes} {sectors} {iv}");
                    decrypt_in_place(&mut cipher, iv, &mut got);
                    assert!(got == data, "{algorithm} {sector_bytes} {sectors} {iv}");
                }
            }
        }
    }
}

#[test]
fn the_algorithm_is_right_with_two_lanes() {
    the_algorithm_is_right_at::<2>();
}

#[test]
fn the_algorithm_is_right_with_four_lanes() {
    the_algorithm_is_right_at::<4>();
}

/// Every instruction of a width against the model.
fn instructions_match_the_model<W: Wide, const LANES: usize>() {
    type M<const LANES: usize> = Model<LANES>;
    let bytes = data_of(4096);
    let back = |vector: W| {
        let mut lanes = [0u128; LANES];
        // SAFETY: a vector has so many lanes.
        unsafe { vector.store(lanes.as_mut_ptr().cast()) };
        Model(lanes)
    };
    for at in (0..4096 - 128).step_by(13) {
        let from = bytes[at..].as_ptr();
        let other = bytes[at + 64..].as_ptr();
        // SAFETY: both have 64 bytes, which is as much as is read; the CPU has the instructions.
        unsafe {
            let (x, k) = (W::load(from), W::load(other));
            let (mx, mk) = (M::<LANES>::load(from), M::<LANES>::load(other));
            assert_eq!(back(x), mx);
            assert_eq!(back(W::broadcast(from.cast())), M::broadcast(from.cast()));
            assert_eq!(back(x.xor(k)), mx.xor(mk));
            assert_eq!(back(x.encrypt_round(k)), mx.encrypt_round(mk));
            assert_eq!(back(x.encrypt_last(k)), mx.encrypt_last(mk));
            assert_eq!(back(x.decrypt_round(k)), mx.decrypt_round(mk));
            assert_eq!(back(x.decrypt_last(k)), mx.decrypt_last(mk));
            for index in 0..IN_FLIGHT {
                assert_eq!(back(W::spread(from.cast(), index)), M::spread(from.cast(), index));
            }
            assert_eq!(back(x.advance()), mx.advance());
            let first = from.cast::<u64>().read_unaligned();
            for step in [1, 8, u64::MAX / 3] {
                assert_eq!(back(W::counters(first, step)), M::counters(first, step));
            }
        }
    }
}

#[test]
fn instructions_of_256_bits_match_the_model() {
    if Width::Bits256.available() {
        instructions_match_the_model::<wide256::Wide256, 2>();
    }
}

#[test]
fn instructions_of_512_bits_match_the_model() {
    if Width::Bits512.available() {
        instructions_match_the_model::<wide512::Wide512, 4>();
    }
}

fn widths() -> Vec<Width> {
    [Width::Bits256, Width::Bits512].into_iter().filter(|width| width.available()).collect()
}

#[test]
fn every_width_that_the_cpu_has_passes_its_self_test() {
    for width in widths() {
        assert_eq!(usable(width), Ok(()));
    }
    assert_eq!(failures(), Vec::<String>::new());
}

#[test]
fn the_self_test_notices_any_wrong_round_key() {
    for width in widths() {
        for table in 0..3 {
            for round in 0..=rounds(Aes256XtsPlain64) {
                let result = self_test::run(&|algorithm, key, sector_bytes| {
                    let mut cipher = Vaes::new(width, algorithm, key, sector_bytes)?;
                    let schedule = &mut *cipher.schedule;
                    let keys = match table {
                        0 => &mut schedule.encrypt,
                        1 => &mut schedule.decrypt,
                        _ => &mut schedule.tweak,
                    };
                    keys[round][round] ^= 1;
                    Ok(Box::new(cipher))
                });
                assert!(result.is_err(), "{width:?} table {table} round {round}");
            }
        }
    }
}

/// A cipher that does something else than it is told.
struct Broken<F>(Box<dyn SectorCipher>, F);

impl<F: Fn(bool, u64, &mut [u8]) -> u64 + Send> SectorCipher for Broken<F> {
    fn sector_bytes(&self) -> usize {
        self.0.sector_bytes()
    }
    fn implementation(&self) -> &'static str {
        "broken"
    }
    unsafe fn encrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        assert_eq!(src, dst);
        // SAFETY: the self-test works in place on buffers of its own.
        let buffer = unsafe { std::slice::from_raw_parts_mut(dst, len) };
        let iv = (self.1)(true, iv, buffer);
        encrypt_in_place(&mut *self.0, iv, buffer);
    }
    unsafe fn decrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        assert_eq!(src, dst);
        // SAFETY: as above.
        let buffer = unsafe { std::slice::from_raw_parts_mut(dst, len) };
        let iv = (self.1)(false, iv, buffer);
        decrypt_in_place(&mut *self.0, iv, buffer);
    }
}

/// The self-test's verdict on a kernel with this fault: (encrypting?, tweak, data) -> tweak.
fn verdict(
    fault: impl Fn(bool, u64, &mut [u8]) -> u64 + Send + Copy + 'static,
) -> Result<(), &'static str> {
    self_test::run(&|algorithm, key, sector_bytes| {
        Ok(Box::new(Broken(portable::new(algorithm, key, sector_bytes)?, fault)))
    })
}

#[test]
fn the_self_test_notices_wrong_tweaks_and_data() {
    assert_eq!(verdict(|_, iv, _| iv), Ok(()));
    for direction in [true, false] {
        assert!(verdict(move |to, iv, _| if to == direction { iv ^ 1 } else { iv }).is_err());
        // A counter of 32 bits: equal in both directions, so only vectors and the oracle notice.
        assert!(
            verdict(move |to, iv, _| if to == direction { iv & 0xffff_ffff } else { iv }).is_err()
        );
        // The last block of a run only.
        assert!(
            verdict(move |to, iv, data| {
                if to == direction && data.len() > 4096 {
                    *data.last_mut().unwrap() ^= 0x80;
                }
                iv
            })
            .is_err()
        );
    }
    assert!(verdict(|_, iv, _| iv & 0xffff_ffff).is_err());
}

#[test]
fn round_keys_lie_in_protected_memory() {
    for width in widths() {
        let cipher = Vaes::new(width, Aes256XtsPlain64, &key_of(Aes256XtsPlain64), 512).unwrap();
        let addr = (&raw const *cipher.schedule).addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = smaps.lines().find(|line| {
            if let Some((start, end)) = line.split_once(' ').and_then(|(a, _)| a.split_once('-')) {
                let parse = |text| usize::from_str_radix(text, 16);
                inside = matches!((parse(start), parse(end)),
                    (Ok(start), Ok(end)) if (start..end).contains(&addr));
            }
            inside && line.starts_with("VmFlags:")
        });
        // smaps flags: dd = don't dump, dc = don't copy on fork (proc(5)).
        let flags = flags.unwrap();
        assert!(flags.contains(" dd") && flags.contains(" dc"), "{flags}");
    }
}
