//! Every crash point of both conversions: the volume opens with each of its passphrases, as LUKS1
//! or as LUKS2, to the same data; it can be mended, and the conversion begun anew.

use super::super::super::interop::File;
use super::super::crash::{crash_states, rounds};
use super::super::world::{Dice, History};
use super::real::read_by_qemu;
use super::*;

/// Which way, and what must hold at each moment of it.
struct Conversion {
    base: Vec<u8>,
    plan: Plan,
    /// The version at its end.
    goal: u8,
    key: Arc<SecretBytes>,
    passphrases: Vec<&'static str>,
    place: (u64, u64),
}

impl Conversion {
    fn new(base: Vec<u8>, plan: Plan, goal: u8, passphrases: &[&'static str]) -> Self {
        let unlocked = unlock(&base, passphrases[0]).unwrap();
        let place = place(&base, &unlocked);
        Self { base, plan, goal, key: unlocked.key, passphrases: passphrases.to_vec(), place }
    }

    fn there(layout: &Layout) -> Self {
        let base = layout.volume();
        let mut passphrases: Vec<_> = layout.slots.iter().map(|(_, text)| *text).collect();
        passphrases.sort_unstable();
        passphrases.dedup();
        let plan = if layout.slots.len() > 6 { for_good(&base) } else { to_luks2(&base) };
        Self::new(base.clone(), plan, 2, &passphrases)
    }

    fn back(layout: &Layout, new_secret: bool) -> Self {
        let volume = layout.volume();
        let converted = after(&volume, &to_luks2(&volume));
        let base = rotated(layout.shape(new_secret), &converted).world.image;
        let opens = if new_secret { NEW } else { OLD };
        Self::new(base.clone(), to_luks1(&base, opens), 1, &[opens])
    }

    /// Opens, whatever it is.
    fn check(&self, image: &[u8]) -> Result<(), String> {
        for passphrase in &self.passphrases {
            let unlocked = unlock(image, passphrase).map_err(|e| format!("{passphrase:?}: {e}"))?;
            if !unlocked.key.ct_eq(self.key.expose()) || place(image, &unlocked) != self.place {
                return Err(format!("{passphrase:?}: other data"));
            }
        }
        Ok(())
    }

    /// What the next start makes of a state, up to the conversion's end; with everything it wrote.
    fn recover(&self, state: Vec<u8>, to_the_end: bool) -> Result<World, String> {
        self.check(&state)?;
        let text = |error: LuksError| sealblk_block::in_one_line(&error);
        let mut world = World::new(state);
        let version = reopened(&mut world).map_err(text)?;
        if !world.log.is_empty() {
            self.check(&world.image)?;
        }
        let again = load(&world.image)
            .and_then(|h| h.finish_conversion(&mut world.image.as_slice(), &mut rng(1)));
        if !again.map_err(text)?.is_empty() {
            return Err("not everything was finished".into());
        }
        if to_the_end {
            if version != self.goal {
                let plan = match self.goal {
                    2 => for_good(&world.image),
                    _ => to_luks1(&world.image, self.passphrases[0]),
                };
                carry_out(&mut world, &plan);
            }
            self.check(&world.image)?;
            self.check_end(&world.image)?;
        }
        Ok(world)
    }

    fn check_end(&self, image: &[u8]) -> Result<(), String> {
        let header = load(image).unwrap();
        let damage = header.report().copies.iter().filter(|copy| copy.damage.is_some()).count();
        let nothing_left = self.goal == 2 || image[1024..32768].iter().all(|byte| *byte == 0);
        if header.version() != self.goal || damage > 0 || !nothing_left {
            return Err(format!("LUKS{}, {damage} damaged", header.version()));
        }
        Ok(())
    }

    /// Crash states, some of which are recovered to the end with crashes on the way.
    fn everywhere(&self, seed: u64, ops: &[Op], lots: usize) -> (usize, Vec<String>) {
        let (mut dice, mut closer) = (Dice::new(seed), Dice::new(seed ^ 0xbeef));
        let mut failures = Vec::new();
        let mut nested = 0;
        let states = crash_states(&self.base, ops, &mut dice, lots, |state, _, name| {
            let closer = closer.chance(3);
            match self.recover(state, closer) {
                Err(failure) => failures.push(format!("{name}: {failure}")),
                Ok(world) if closer => {
                    let mut dice = Dice::new(seed ^ 0xfeed);
                    let mut sample = Dice::new(seed ^ 0xface);
                    nested += crash_states(&world.base, &world.log, &mut dice, 0, |s, _, at| {
                        if sample.chance(10)
                            && let Err(failure) = self.recover(s, false)
                        {
                            failures.push(format!("{name}, then {at}: {failure}"));
                        }
                    });
                }
                Ok(_) => {}
            }
        });
        (states + nested / 10, failures)
    }
}

/// Where the data lies: sector on the volume, and IV.
fn place(image: &[u8], unlocked: &Unlocked) -> (u64, u64) {
    let specs = load(image).unwrap().segments(unlocked, image.len() as u64).unwrap();
    assert_eq!(specs.len(), 1);
    (specs[0].volume_start, specs[0].iv_start)
}

fn survives(name: &str, conversion: &Conversion, lots: usize, least: usize) {
    conversion.check_end(&after(&conversion.base, &conversion.plan)).unwrap();
    let (rounds, more) = rounds();
    for seed in (0..rounds).map(|round| 2000 + round) {
        let lots = lots.max(more.saturating_sub(2));
        let (states, failures) = conversion.everywhere(seed, &ops(&conversion.plan), lots);
        println!("{name}: seed {seed}: {states} crash states");
        assert!(
            failures.is_empty(),
            "{name}, seed {seed}: {} of {states} crash states are lost: {:#?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        assert!(states >= least, "{name}: only {states} states");
    }
}

#[test]
fn the_conversion_to_luks2_survives_every_crash() {
    for layout in [CRYPTSETUP, QEMU, SMALL, SHARED, FULL] {
        survives(layout.name, &Conversion::there(&layout), 0, 100);
    }
}

/// They are few: most of what is wiped is zero already.
#[test]
fn the_conversion_back_to_luks1_survives_every_crash() {
    for (layout, new_secret) in [(CRYPTSETUP, false), (QEMU, true), (SMALL, true), (SHARED, false)]
    {
        survives(layout.name, &Conversion::back(&layout, new_secret), 8, 15);
    }
}

/// The process dies, not the machine: the next one sees what was written, but a power cut may still
/// undo what was not flushed.
#[test]
fn a_kill_and_then_a_power_cut_lose_nothing() {
    for conversion in [Conversion::there(&SMALL), Conversion::back(&SMALL, false)] {
        let all = ops(&conversion.plan);
        let mut states = 0;
        for killed_after in 1..all.len() {
            let done = &all[..killed_after];
            let durable = done.iter().rposition(|op| matches!(op, Op::Flush)).unwrap_or(0);
            if durable + 1 == killed_after {
                continue;
            }
            let mut world = World::new(conversion.base.clone());
            for op in done {
                if let Op::Write { at, data, .. } = op {
                    world.image[*at..at + data.len()].copy_from_slice(data);
                }
            }
            let next = conversion.recover(world.image, true).unwrap();
            let mut base = conversion.base.clone();
            for op in &done[..durable] {
                if let Op::Write { at, data, .. } = op {
                    base[*at..at + data.len()].copy_from_slice(data);
                }
            }
            let log: Vec<Op> = done[durable..].iter().chain(&next.log).cloned().collect();
            let mut sample = Dice::new(killed_after as u64);
            crash_states(&base, &log, &mut Dice::new(3), 0, |state, _, name| {
                if sample.chance(if conversion.goal == 1 { 100 } else { 10 }) {
                    states += 1;
                    conversion.recover(state, false).unwrap_or_else(|failure| {
                        panic!("killed after {killed_after}, then {name}: {failure}")
                    });
                }
            });
        }
        println!("LUKS{}: {states} states", conversion.goal);
        assert!(states >= 80, "only {states} states");
    }
}

/// Each rule of the order, when it is broken, loses volumes that this simulation sees.
#[test]
fn the_negative_controls_are_caught() {
    let lost = |conversion: &Conversion, ops: &[Op]| {
        let mut lost = 0;
        let states = crash_states(&conversion.base, ops, &mut Dice::new(9), 0, |state, _, _| {
            lost += usize::from(conversion.check(&state).is_err());
        });
        (lost, states)
    };
    let is_write_at = |op: &Op, place: usize| matches!(op, Op::Write { at, .. } if *at == place);
    let position = |ops: &[Op], place| ops.iter().position(|op| is_write_at(op, place)).unwrap();

    let there = Conversion::there(&SMALL);
    assert_eq!(lost(&there, &ops(&there.plan)).0, 0);
    let back = Conversion::back(&SMALL, false);
    assert_eq!(lost(&back, &ops(&back.plan)).0, 0);

    let mut no_material = ops(&there.plan);
    no_material.remove(position(&no_material, SMALL.grid()[1] as usize * 512));
    // The headers of LUKS2 while keyslot 0 is in use.
    let mut headers_first = ops(&there.plan);
    let json = position(&headers_first, 4096);
    let json = headers_first.remove(json);
    headers_first.insert(0, json);
    let mut not_retired_durably = ops(&there.plan);
    let secondary = position(&not_retired_durably, 16384);
    not_retired_durably[secondary - 1] = Op::Promise;
    // Without the flush the switch may come before what it switches to.
    let mut no_flush = ops(&there.plan);
    let switch = no_flush.iter().rposition(|op| is_write_at(op, 0)).unwrap();
    no_flush.remove(switch - 1);

    let mut wiped_first = ops(&back.plan);
    let wipe = position(&wiped_first, 16384);
    let wipe = wiped_first.remove(wipe);
    wiped_first.insert(0, wipe);
    let mut switched_first = ops(&back.plan);
    let (rest, switch) = (position(&switched_first, 512), position(&switched_first, 0));
    switched_first.swap(rest, switch);

    for (name, conversion, ops) in [
        ("no material", &there, no_material),
        ("headers over a keyslot in use", &there, headers_first),
        ("switch without a flush", &there, no_flush),
        ("secondary wiped first", &back, wiped_first),
        ("sector 0 before sector 1", &back, switched_first),
    ] {
        let (bad, states) = lost(conversion, &ops);
        println!("control {name}: {bad} of {states} crash states are lost");
        assert!(bad > 0, "{name}: nothing was lost in {states} crash states");
    }
    // Harmless for who opens it, as the copy opens, too: but keyslot 0 would be in use and destroyed.
    assert_eq!(lost(&there, &not_retired_durably).0, 0);
}

/// The states that our code is tried with, opened by the programs that have to live with them.
#[test]
fn cryptsetup_and_qemu_open_crash_states_of_the_conversions() {
    let history = History::default();
    for (layout, back) in
        [(CRYPTSETUP, false), (QEMU, false), (SMALL, false), (QEMU, true), (SMALL, true)]
    {
        let conversion =
            if back { Conversion::back(&layout, false) } else { Conversion::there(&layout) };
        let plain = {
            let unlocked = unlock(&conversion.base, OLD).unwrap();
            let header = load(&conversion.base).unwrap();
            plaintext(
                &conversion.base,
                &header.segments(&unlocked, conversion.base.len() as u64).unwrap(),
            )
        };
        if !back {
            history.check(&layout.shape(false), &plain).unwrap();
        }
        let (mut tried, mut by_qemu) = (0, 0);
        let mut sample = Dice::new(61);
        let log = ops(&conversion.plan);
        crash_states(&conversion.base, &log, &mut Dice::new(60), 0, |state, _, name| {
            if !sample.chance(if back { 60 } else { 4 }) {
                return;
            }
            tried += 1;
            let file = File::new(&state);
            assert!(file.opens(OLD), "{} {name}", layout.name);
            if load(&state).unwrap().version() == 1 {
                by_qemu += 1;
                assert!(read_by_qemu(&state, OLD).unwrap() == plain, "{} {name}", layout.name);
            }
            // cryptsetup may have mended what it found: not into something else.
            conversion.recover(file.image(), true).unwrap();
        });
        println!("{} back: {back}: {tried} states, {by_qemu} of them by QEMU", layout.name);
        assert!(tried >= 5 && by_qemu >= 1, "{tried} {by_qemu}");
    }
}
