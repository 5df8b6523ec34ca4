//! What goes where: (items, limits, wishes) → [`Plan`]. No I/O; the same input gives the same plan.
//!
//! What fits uncompressed is shipped uncompressed, because Lambda unpacks it for free. When it does not fit, files
//! move to the sideload archive until the rest does: those that cost the cold start least.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Placement;
use crate::limits::{MIB, TMP_DEFAULT, TMP_MAX, UNZIPPED, ZIPPED_DIRECT};

/// What the planner knows of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Path in the package.
    pub dest: String,
    /// Bytes uncompressed.
    pub size: u64,
    /// Bytes compressed, as measured or estimated.
    pub packed: u64,
    /// CPU time that unpacking takes, by estimate; at a cold start only where the candidate is not lazy.
    pub cost: Duration,
    /// What the configuration says.
    pub placement: Placement,
    /// Unpacked on first use.
    pub lazy: bool,
    /// A native library: found through LD_LIBRARY_PATH, which only a launcher can set.
    pub library: bool,
    /// Candidates of one unit go to one place: the files of one asset, which a function may ask for as a directory.
    pub unit: usize,
    /// Number of the candidate that this one, a symlink, points at: it goes where that goes.
    pub follows: Option<usize>,
}

/// What the planner must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of a launcher, where one is needed.
    pub launcher: u64,
    /// `EphemeralStorage.Size` that the user set, MiB.
    pub ephemeral_storage: Option<u32>,
}

/// Where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the deployment package as it is.
    Package,
    /// In the sideload archive, unpacked at cold start.
    Archive,
    /// In the sideload archive, unpacked on first use.
    ArchiveLazy,
}

/// Why a file goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// All that may be uncompressed fits uncompressed.
    Fits,
    /// Something had to give way, and this wins most bytes for the time that it costs.
    BiggestWin,
    /// The configuration says so.
    Configured,
}

/// The decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Of each candidate, in their order.
    pub places: Vec<(Place, Why)>,
    /// Whether a launcher is the `bootstrap`.
    pub launcher: bool,
    /// Whether everything would fit uncompressed, also what is configured otherwise.
    pub fits_uncompressed: bool,
    /// Bytes of the deployment package, unzipped, with the archive as estimated.
    pub unzipped: u64,
    /// Bytes that the archive's files take in /tmp.
    pub tmp: u64,
    /// `EphemeralStorage.Size` to set, MiB.
    pub ephemeral_storage: u32,
}

/// What a file takes is counted in these, and half of one for its name and inode, bytes: never less than the
/// launcher asks for.
const TMP_BLOCK: u64 = 4096;

/// /tmp that is left to the function itself when the default size is kept, bytes.
const TMP_HEADROOM: u64 = 64 * MIB;

/// Nothing fits: the figures, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DoesNotFit(pub String);

/// Decides.
///
/// # Errors
///
/// [`DoesNotFit`].
pub fn plan(candidates: &[Candidate], budget: Budget) -> Result<Plan, DoesNotFit> {
    let mut places: Vec<(Place, Why)> = candidates.iter().map(first_place).collect();
    let needs_launcher = |places: &[(Place, Why)]| {
        let sideloaded = places.iter().any(|(place, _)| *place != Place::Package);
        sideloaded || candidates.iter().any(|candidate| candidate.library)
    };
    let unzipped = |places: &[(Place, Why)]| {
        let files = candidates
            .iter()
            .zip(places)
            .map(|(candidate, (place, _))| match place {
                Place::Package => candidate.size,
                Place::Archive | Place::ArchiveLazy => candidate.packed,
            });
        files.sum::<u64>()
            + if needs_launcher(places) {
                budget.launcher
            } else {
                0
            }
    };

    let total = unzipped(&places);
    if total >= UNZIPPED.value {
        // The launcher comes with the first file that moves.
        let launcher = if needs_launcher(&places) {
            0
        } else {
            budget.launcher
        };
        let over = total + launcher - UNZIPPED.value + 1;
        for unit in cheapest(units(candidates), over) {
            for n in unit.members {
                places[n] = (sideload(&candidates[n]), Why::BiggestWin);
            }
        }
    }
    follow(candidates, &mut places);

    let total = unzipped(&places);
    if total >= UNZIPPED.value {
        return Err(DoesNotFit(too_large(candidates, &places, total)));
    }
    let tmp: u64 = candidates
        .iter()
        .zip(&places)
        .filter(|(_, (place, _))| *place != Place::Package)
        .map(|(candidate, _)| candidate.size.next_multiple_of(TMP_BLOCK) + TMP_BLOCK / 2)
        .sum();
    let ephemeral_storage = ephemeral_storage(tmp, budget.ephemeral_storage)?;
    let launcher = needs_launcher(&places);
    let uncompressed = vec![(Place::Package, Why::Fits); candidates.len()];
    Ok(Plan {
        fits_uncompressed: unzipped(&uncompressed) < UNZIPPED.value,
        places,
        launcher,
        unzipped: total,
        tmp,
        ephemeral_storage,
    })
}

/// Candidates that move together, if they move.
#[derive(Debug, Clone)]
struct Unit {
    /// Bytes that the package gets smaller by.
    win: u64,
    /// CPU time that the cold start gets longer by.
    cost: Duration,
    members: Vec<usize>,
}

impl Unit {
    /// Compares what the bytes cost: less is better.
    fn by_rate(&self, other: &Unit) -> Ordering {
        let rate = |this: &Unit, other: &Unit| this.cost.as_nanos() * u128::from(other.win);
        rate(self, other).cmp(&rate(other, self))
    }
}

/// What may move and wins something by it.
fn units(candidates: &[Candidate]) -> Vec<Unit> {
    let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
    for (n, candidate) in candidates.iter().enumerate() {
        if candidate.placement == Placement::Auto && candidate.follows.is_none() {
            let unit = units.entry(candidate.unit).or_insert(Unit {
                win: 0,
                cost: Duration::ZERO,
                members: Vec::new(),
            });
            unit.win += candidate.size.saturating_sub(candidate.packed);
            if !candidate.lazy {
                unit.cost += candidate.cost;
            }
            unit.members.push(n);
        }
    }
    let mut units: Vec<Unit> = units.into_values().filter(|unit| unit.win > 0).collect();
    let dest = |unit: &Unit| &candidates[unit.members[0]].dest;
    units.sort_by(|a, b| {
        let order = a.by_rate(b).then(b.win.cmp(&a.win));
        order.then_with(|| dest(a).cmp(dest(b)))
    });
    units
}

/// Of `units`, which come in the order of their rates, those that win at least `over` bytes and cost least; all of them, if
/// they do not win so much.
///
/// To find the very least is a knapsack problem. This never costs more than twice that (Gens and Levner's rule), and mostly is it: units
/// are taken in turn, but one that would finish is set aside, as one way to do it, and the next ones are looked at.
fn cheapest(units: Vec<Unit>, over: u64) -> Vec<Unit> {
    let sum = |units: &[Unit]| units.iter().map(|unit| unit.win).sum::<u64>();
    let cost = |units: &[Unit]| units.iter().map(|unit| unit.cost).sum::<Duration>();
    let (mut taken, mut best): (Vec<Unit>, Option<Vec<Unit>>) = (Vec::new(), None);
    for unit in &units {
        let mut way = taken.clone();
        way.push(unit.clone());
        if sum(&way) < over {
            taken = way;
            continue;
        }
        // What the last one made needless, the worst rate first.
        for n in (0..way.len()).rev() {
            if sum(&way) - way[n].win >= over {
                way.remove(n);
            }
        }
        if best.as_ref().is_none_or(|best| cost(&way) < cost(best)) {
            best = Some(way);
        }
    }
    best.unwrap_or(units)
}

fn first_place(candidate: &Candidate) -> (Place, Why) {
    match candidate.placement {
        Placement::Sideload => (sideload(candidate), Why::Configured),
        Placement::Inline => (Place::Package, Why::Configured),
        Placement::Auto => (Place::Package, Why::Fits),
    }
}

/// A symlink parted from what it points at would dangle.
fn follow(candidates: &[Candidate], places: &mut [(Place, Why)]) {
    for n in 0..candidates.len() {
        let mut at = n;
        // Links can point at links; more steps than candidates would be a circle.
        for _ in 0..candidates.len() {
            match candidates[at].follows {
                Some(next) => at = next,
                None => break,
            }
        }
        places[n] = places[at];
    }
}

fn sideload(candidate: &Candidate) -> Place {
    if candidate.lazy {
        Place::ArchiveLazy
    } else {
        Place::Archive
    }
}

fn ephemeral_storage(tmp: u64, set: Option<u32>) -> Result<u32, DoesNotFit> {
    let needed = tmp.div_ceil(MIB);
    if tmp > TMP_MAX.value {
        return Err(DoesNotFit(format!(
            "the unpacked files need {needed} MB of /tmp, and Lambda has {} MB at most\nhelp: leave files out, or fetch them when they are used",
            TMP_MAX.value / MIB
        )));
    }
    if let Some(set) = set {
        return match u64::from(set) >= needed {
            true => Ok(set),
            false => Err(DoesNotFit(format!(
                "the unpacked files need {needed} MB of /tmp, and `ephemeral-storage` is {set}\nhelp: set it to {needed} or more"
            ))),
        };
    }
    // Past the default it is paid for, so no more than needed with some room for the function.
    let wanted = (tmp + TMP_HEADROOM).clamp(TMP_DEFAULT.value, TMP_MAX.value);
    Ok(wanted.div_ceil(MIB) as u32)
}

fn too_large(candidates: &[Candidate], places: &[(Place, Why)], total: u64) -> String {
    let mut largest: Vec<(u64, &str, &str)> = candidates
        .iter()
        .zip(places)
        .map(|(candidate, (place, _))| match place {
            Place::Package => (candidate.size, candidate.dest.as_str(), "uncompressed"),
            _ => (candidate.packed, candidate.dest.as_str(), "compressed"),
        })
        .collect();
    largest.sort_by(|a, b| b.cmp(a));
    let lines: String = largest
        .iter()
        .take(5)
        .map(|(size, dest, how)| format!("\n  {size:>11} bytes {how}: `{dest}`"))
        .collect();
    let over = total - UNZIPPED.value + 1;
    let forced = candidates.iter().any(|candidate| {
        candidate.placement == Placement::Inline && candidate.size > candidate.packed
    });
    let help = if forced {
        "place the files that are forced `inline` with `placement = \"auto\"` or `\"sideload\"`"
    } else {
        "leave files out, keep models in S3 and fetch them when they are used, or use a container image (10 GB)"
    };
    format!(
        "the package does not fit: {total} bytes unzipped, and Lambda takes less than {} ({over} bytes over)\n  largest:{lines}\nhelp: {help}",
        UNZIPPED.value
    )
}

/// A remark for a zip that is too large for the API call itself.
pub fn upload_note(zipped: u64) -> Option<String> {
    (zipped > ZIPPED_DIRECT.value).then(|| {
        format!(
            "the zip is {zipped} bytes, over the {} that can be uploaded directly: deploy it through an S3 bucket (`aws lambda update-function-code --s3-bucket …`; SAM and CDK do so by themselves)",
            ZIPPED_DIRECT.value
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dest: &str, size: u64, packed: u64, placement: Placement) -> Candidate {
        Candidate {
            dest: dest.into(),
            size,
            packed,
            cost: Duration::from_nanos(size),
            placement,
            lazy: false,
            library: false,
            unit: size as usize,
            follows: None,
        }
    }

    #[test]
    fn the_files_of_one_asset_stay_together() {
        let mut files = [
            file("models/a", 200 * MIB, 20 * MIB, Placement::Auto),
            file("models/b", MIB, MIB / 2, Placement::Auto),
            file("bin/f", 100 * MIB, 60 * MIB, Placement::Auto),
        ];
        files[1].unit = files[0].unit;
        let plan = plan(&files, BUDGET).expect("fits");
        let places: Vec<Place> = plan.places.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [Place::Archive, Place::Archive, Place::Package]);
    }

    #[test]
    fn a_symlink_goes_where_its_target_goes() {
        let mut files = [
            file("models/big", 300 * MIB, 20 * MIB, Placement::Auto),
            file("models/latest", 3, 0, Placement::Auto),
            file("models/stable", 6, 0, Placement::Inline),
        ];
        files[1].follows = Some(0);
        files[2].follows = Some(1);
        let plan = plan(&files, BUDGET).expect("fits");
        assert!(
            plan.places
                .iter()
                .all(|(place, _)| *place == Place::Archive)
        );
    }

    const BUDGET: Budget = Budget {
        launcher: 400_000,
        ephemeral_storage: None,
    };

    #[test]
    fn what_fits_is_not_compressed_and_needs_no_launcher() {
        let plan = plan(
            &[file("bin/f", 100 * MIB, 30 * MIB, Placement::Auto)],
            BUDGET,
        )
        .expect("fits");
        assert_eq!(plan.places, [(Place::Package, Why::Fits)]);
        assert!(!plan.launcher);
        assert_eq!((plan.tmp, plan.ephemeral_storage), (0, 512));
    }

    #[test]
    fn a_bundled_library_needs_the_launcher_for_its_search_path() {
        let mut library = file("lib/libx.so", MIB, MIB / 2, Placement::Auto);
        library.library = true;
        assert!(plan(&[library], BUDGET).expect("fits").launcher);
    }

    #[test]
    fn the_limit_itself_is_too_much() {
        let at = |size| plan(&[file("a", size, size, Placement::Auto)], BUDGET);
        assert!(at(UNZIPPED.value - 1).is_ok());
        assert!(at(UNZIPPED.value).is_err());
    }

    /// What moves of files of (MiB, MiB packed, milliseconds).
    fn moved(files: &[(&str, u64, u64, u64)]) -> Vec<String> {
        let candidates: Vec<Candidate> = files
            .iter()
            .enumerate()
            .map(|(unit, (dest, size, packed, cost))| Candidate {
                unit,
                cost: Duration::from_millis(*cost),
                ..file(dest, size * MIB, packed * MIB, Placement::Auto)
            })
            .collect();
        let plan = plan(&candidates, BUDGET).expect("fits");
        assert!(plan.launcher && plan.unzipped < UNZIPPED.value);
        let moved = candidates.iter().zip(&plan.places);
        moved
            .filter(|(_, place)| **place == (Place::Archive, Why::BiggestWin))
            .map(|(candidate, _)| candidate.dest.clone())
            .collect()
    }

    #[test]
    fn what_costs_the_start_least_moves_and_no_more_than_needed() {
        let poor = ("poor", 120, 110, 300);
        // 20.4 MiB too many: the smaller of two that are enough, though the larger wins more for its time.
        assert_eq!(
            moved(&[poor, ("large", 100, 20, 200), ("middling", 50, 20, 100)]),
            ["middling"]
        );
        // Among equals by size, what is quick to unpack.
        assert_eq!(
            moved(&[poor, ("code", 100, 20, 400), ("text", 100, 20, 200)]),
            ["text"]
        );
        // 80.4 too many: two cheap ones rather than one dear one.
        let files = [
            ("dear", 150, 20, 900),
            ("one", 90, 45, 200),
            ("two", 90, 45, 250),
        ];
        assert_eq!(moved(&files), ["one", "two"]);
        // The one that finishes makes what came before it needless.
        let files = [("tiny", 50, 45, 1), ("huge", 280, 100, 300)];
        assert_eq!(moved(&files), ["huge"]);
    }

    #[test]
    fn what_is_unpacked_on_first_use_costs_the_start_nothing() {
        let mut files = [
            file("eager", 200 * MIB, 20 * MIB, Placement::Auto),
            file("lazy", 201 * MIB, 101 * MIB, Placement::Auto),
        ];
        files[1].lazy = true;
        files[1].cost = Duration::from_secs(60);
        // Either is too little alone for 151.4 MiB but `eager`; lazy comes first all the same where it is enough.
        assert_eq!(
            plan(&files, BUDGET).expect("fits").places[1].0,
            Place::Package
        );
        files[0].size = 100 * MIB;
        let places = plan(&files, BUDGET).expect("fits").places;
        assert_eq!(
            (places[0].0, places[1].0),
            (Place::Package, Place::ArchiveLazy)
        );
    }

    #[test]
    fn what_would_fit_uncompressed_is_told_apart() {
        let fits = |size: u64| {
            let files = [file("a", size * MIB, 5 * MIB, Placement::Sideload)];
            plan(&files, BUDGET).expect("fits").fits_uncompressed
        };
        assert!(fits(249));
        assert!(!fits(250));
    }

    #[test]
    fn a_file_that_does_not_compress_is_never_moved() {
        let error = plan(
            &[file("noise", 300 * MIB, 300 * MIB, Placement::Auto)],
            BUDGET,
        )
        .expect_err("too large")
        .0;
        assert!(
            error.contains("314572800 bytes uncompressed: `noise`"),
            "{error}"
        );
        assert!(error.contains("52428801 bytes over"), "{error}");
    }

    #[test]
    fn forced_placements_hold() {
        let plan = plan(
            &[
                file("a", 10, 5, Placement::Sideload),
                file("b", 10, 5, Placement::Inline),
            ],
            BUDGET,
        )
        .expect("fits");
        assert_eq!(
            plan.places,
            [
                (Place::Archive, Why::Configured),
                (Place::Package, Why::Configured)
            ]
        );
    }

    #[test]
    fn tmp_grows_past_the_default_and_a_setting_below_the_need_is_refused() {
        let files = [file("a", 600 * MIB, 100 * MIB, Placement::Auto)];
        assert_eq!(plan(&files, BUDGET).expect("fits").ephemeral_storage, 665);
        let error = plan(
            &files,
            Budget {
                ephemeral_storage: Some(512),
                ..BUDGET
            },
        )
        .expect_err("too small")
        .0;
        assert!(
            error.contains("need 601 MB of /tmp, and `ephemeral-storage` is 512"),
            "{error}"
        );
    }
}
