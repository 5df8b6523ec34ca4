//! What goes where: (items, limits, wishes) → [`Plan`]. No I/O; the same input gives the same plan.
//!
//! What fits uncompressed is shipped uncompressed, because Lambda unpacks it for free. When it does not fit, files
//! move to the sideload archive, the one that wins most bytes first, until the rest does.

use std::collections::BTreeMap;

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
    /// Something had to give way, and this wins most bytes.
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

    let mut units: BTreeMap<usize, (u64, Vec<usize>)> = BTreeMap::new();
    for (n, candidate) in candidates.iter().enumerate() {
        if candidate.placement == Placement::Auto && candidate.follows.is_none() {
            let unit = units.entry(candidate.unit).or_default();
            unit.0 += candidate.size.saturating_sub(candidate.packed);
            unit.1.push(n);
        }
    }
    let mut by_win: Vec<&(u64, Vec<usize>)> = units.values().filter(|(win, _)| *win > 0).collect();
    by_win.sort_by(|a, b| {
        b.0.cmp(&a.0)
            .then_with(|| candidates[a.1[0]].dest.cmp(&candidates[b.1[0]].dest))
    });
    for (_, members) in by_win {
        if unzipped(&places) < UNZIPPED.value {
            break;
        }
        for n in members {
            places[*n] = (sideload(&candidates[*n]), Why::BiggestWin);
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
    Ok(Plan {
        places,
        launcher,
        unzipped: total,
        tmp,
        ephemeral_storage,
    })
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

    #[test]
    fn the_biggest_win_moves_first_and_no_more_than_needed() {
        let files = [
            file("small-win", 120 * MIB, 110 * MIB, Placement::Auto),
            file("big-win", 100 * MIB, 20 * MIB, Placement::Auto),
            file("middling", 50 * MIB, 20 * MIB, Placement::Auto),
        ];
        let plan = plan(&files, BUDGET).expect("fits");
        let places: Vec<Place> = plan.places.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [Place::Package, Place::Archive, Place::Package]);
        assert_eq!(plan.tmp, 100 * MIB + TMP_BLOCK / 2);
        assert!(plan.launcher);
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
