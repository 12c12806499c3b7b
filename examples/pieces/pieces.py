"""Join noisy, overlapping pieces of a curve that is known, and see if it is found."""

import numpy as np

import mpiens

rng = np.random.default_rng(7)
x = np.linspace(-1, 1, 81)
curve = 300 * (1 - x**2) + 20 * np.sin(5 * x)  # like a log density of states

# Five windows of 25 points; neighbours share 11. Each has 20 replicates of its own,
# with noise of deviation 0.5, and knows the curve but for a constant.
windows = [slice(start, start + 25) for start in range(0, 70, 14)]
constants = rng.uniform(-1000, 1000, size=len(windows))
xs = [x[window] for window in windows]
ys = [
    curve[window] + constant + rng.normal(0, 0.5, size=(20, 25))
    for window, constant in zip(windows, constants, strict=True)
]

joined = mpiens.join(xs, ys, anchor=(-1.0, curve[0]))

away = np.abs(joined.y - curve)
covered = np.mean(away <= 1.96 * joined.error)
print(f"points          {len(joined.x)} of {sum(map(len, xs))} in {len(xs)} pieces")
print(f"largest error   {away.max():.2f} of {np.ptp(curve):.0f}")
print(f"standard error  {joined.error[1]:.2f} to {joined.error[-1]:.2f}")
print(f"by bootstrap    {joined.bootstrap_error[1]:.2f} to", end=" ")
print(f"{joined.bootstrap_error[-1]:.2f}")
print(f"within 95 %     {covered:.0%} of the points")
print(f"overlaps agree  {[round(r.scaled, 2) for r in joined.residuals]}")
