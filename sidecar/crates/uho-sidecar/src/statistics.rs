//! Intervals around what a sample tells of a whole: as simple as they can be while they stay honest for rare things.

/// How often an interval holds what it is said to hold.
pub(crate) const CONFIDENCE: f64 = 0.95;
/// The standard normal distribution exceeds this with a chance of 2.5 %: for two-sided intervals of 95 %.
const Z: f64 = 1.959_964;

/// An estimate with the interval that holds the true value with a chance of [`CONFIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Interval {
    /// The best guess.
    pub(crate) estimate: f64,
    /// The lower end.
    pub(crate) low: f64,
    /// The upper end.
    pub(crate) high: f64,
}

impl Interval {
    /// The larger side's width as a fraction of the estimate; infinite around 0.
    pub(crate) fn relative_width(&self) -> f64 {
        if self.estimate <= 0.0 {
            return f64::INFINITY;
        }
        (self.high - self.estimate).max(self.estimate - self.low) / self.estimate
    }

    /// The same times `factor`; times 0 it is 0, whatever was known of it.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        if factor <= 0.0 {
            let (estimate, low, high) = (0.0, 0.0, 0.0);
            return Self {
                estimate,
                low,
                high,
            };
        }
        Self {
            estimate: self.estimate * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}

/// Mean and variance of values as they come (Welford's method).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    count: f64,
    average: f64,
    squares: f64,
}

impl Mean {
    /// Adds a value.
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.average;
        self.average += before / self.count;
        self.squares += before * (value - self.average);
    }

    /// The mean's interval by Student's t. With fewer than two values nothing is known of how they vary.
    pub(crate) fn interval(&self) -> Interval {
        let freedom = self.count - 1.0;
        let half = if freedom < 1.0 {
            f64::INFINITY
        } else {
            student(freedom) * (self.squares / freedom / self.count).sqrt()
        };
        Interval {
            estimate: self.average,
            low: (self.average - half).max(0.0),
            high: self.average + half,
        }
    }
}

/// Student's t that is exceeded with a chance of 2.5 %, by its expansion around the normal distribution's. It is
/// 7.5 % short for 2 degrees of freedom and within 1 % from 4 on.
fn student(freedom: f64) -> f64 {
    let (z3, z5, z7) = (Z.powi(3), Z.powi(5), Z.powi(7));
    Z + (z3 + Z) / (4.0 * freedom)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / (96.0 * freedom.powi(2))
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / (384.0 * freedom.powi(3))
}

/// The interval of a Poisson distribution's mean of which `count` was seen (Byar's approximation of the exact one).
/// For 0 it ends at 3.7: nothing seen is not nothing there.
pub(crate) fn poisson(count: f64) -> (f64, f64) {
    let root = |count: f64, sign: f64| {
        let inner = 1.0 - 1.0 / (9.0 * count) + sign * Z / (3.0 * count.sqrt());
        count * inner.max(0.0).powi(3)
    };
    let low = if count > 0.0 { root(count, -1.0) } else { 0.0 };
    (low, root(count + 1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::{Mean, poisson, student};

    fn close(found: f64, expected: f64, within: f64) {
        let error = (found - expected).abs() / expected.abs();
        assert!(error <= within, "{found} is not {expected}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(4.0, 2.7764), (9.0, 2.2622), (30.0, 2.0423), (1e6, 1.96)] {
            close(student(freedom), expected, 0.01);
        }
        close(student(2.0), 4.3027, 0.08);
        for (count, low, high) in [
            (1.0, 0.0253, 5.572),
            (10.0, 4.795, 18.390),
            (100.0, 81.36, 121.63),
        ] {
            let (found_low, found_high) = poisson(count);
            // Of one alone the approximation's lower end is off by half, of something next to nothing.
            close(found_low, low, if count < 2.0 { 0.6 } else { 0.02 });
            close(found_high, high, 0.02);
        }
        let (low, high) = poisson(0.0);
        assert!(low.abs() < 1e-12);
        close(high, 3.689, 0.02);
    }

    #[test]
    fn a_mean_is_as_sure_as_its_values_agree() {
        let mut mean = Mean::default();
        mean.add(2.0);
        assert!(mean.interval().high.is_infinite());
        for value in [4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0] {
            mean.add(value);
        }
        let interval = mean.interval();
        close(interval.estimate, 5.0, 1e-12);
        // The sample's standard deviation is √(32 ÷ 7), t for 7 degrees of freedom 2.3646.
        close(
            interval.high - 5.0,
            2.3646 * (32.0_f64 / 7.0 / 8.0).sqrt(),
            0.01,
        );
        close(interval.relative_width(), (interval.high - 5.0) / 5.0, 1e-9);
    }
}
