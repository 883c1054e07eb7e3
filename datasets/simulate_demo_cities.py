"""Make the bundled simulated cities: ``python datasets/simulate_demo_cities.py`` (needs ``tsjt-pyg[simulate]``).

Vehicles are driven by UXsim (kinematic-wave traffic, so queues grow against the direction of travel) over the plans of
``demo_networks.py``. What comes out is what detectors would have reported: five-minute mean speed and flow of each road
segment with noise and gaps. Each day is a world of its own that starts at 23:30 the evening before, when roads are
nearly empty; that keeps memory small and lets a day be looked at without the days before it.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from demo_networks import CITY_PLANS, CityPlan, Floats, Ints, Network
from numpy.typing import NDArray

try:
    from uxsim import World
except ImportError as error:
    raise SystemExit(f"uxsim is not installed here ({error}); pip install 'tsjt-pyg[simulate]'") from error

INTERVAL_MINUTES = 5
STEPS_PER_DAY = 24 * 60 // INTERVAL_MINUTES
MISSING = 65535
"""Code of a missing reading in both channels; no speed in 0.1 km/h and no five-minute flow comes near it."""

PLATOON = 3
"""Vehicles that UXsim moves as one, and at its reaction time of one second the seconds of a simulation step."""
WARM_UP = 1800
JAM_DENSITY = 0.15
"""Vehicles per metre and lane."""
SATURATION = 0.5
"""Vehicles per second and lane past the stop line while it is green."""
FRICTION = 0.10
"""Share of its speed a full but flowing road loses: a triangular fundamental diagram alone would lose none."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Disturbance:
    """A while in which some segments pass fewer and slower vehicles: an incident, road works or rain."""

    begin: float
    """Seconds after midnight."""
    finish: float
    segments: Ints
    capacity: float
    speed: float


@dataclass(frozen=True)
class Detectors:
    """What the sensors of a city reported, with the same gaps in both channels."""

    speed: Floats
    """km/h, ``[T, N]``, NaN where missing."""
    flow: Floats


def draw_disturbances(plan: CityPlan, rng: np.random.Generator) -> list[Disturbance]:
    """The bad luck of one day: incidents and road works where there is much road, on some days rain over the city.

    Works and rain last for hours on days that no calendar tells: what the sensors say now then holds for the next hour,
    and an average over past days does not.
    """
    network = plan.network
    exposure = network.length * network.lanes
    events = []
    for _ in range(rng.poisson(plan.incidents_per_day)):
        begin = rng.uniform(5.5, 22.0) * 3600
        segment = rng.choice(network.size, p=exposure / exposure.sum())
        finish = begin + rng.uniform(20, 90) * 60
        events.append(Disturbance(begin, finish, np.array([segment]), rng.uniform(0.12, 0.45), rng.uniform(0.4, 0.8)))
    for _ in range(rng.poisson(plan.works_per_day)):
        begin = rng.uniform(6.0, 18.0) * 3600
        finish = min(begin + rng.uniform(3, 9) * 3600, 86_400)
        segment = rng.choice(network.size, p=exposure / exposure.sum())
        events.append(Disturbance(begin, finish, np.array([segment]), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.75)))
    if rng.random() < 0.45:
        begin = rng.uniform(-3, 18) * 3600
        finish = min(begin + rng.uniform(4, 14) * 3600, 86_400)
        begin = max(begin, 0.0)
        speed = rng.uniform(0.8, 0.94)
        events.append(Disturbance(begin, finish, np.arange(network.size), (1 + speed) / 2, speed))
    return events


def draw_pulse(rng: np.random.Generator) -> Floats:
    """How much livelier than planned the city is, every quarter of an hour: a slow wander around one.

    Its memory of about two hours is what makes the present tell something about the next hour that the calendar does
    not know; without it a table of averages would forecast as well as any model.
    """
    keep, wander = math.exp(-0.25 / 2.0), np.zeros(97)
    wander[0] = rng.normal()
    for k in range(1, 97):
        wander[k] = keep * wander[k - 1] + math.sqrt(1 - keep**2) * rng.normal()
    return np.exp(np.clip(0.15 * wander, -0.35, 0.25))


def draw_trips(plan: CityPlan, day: datetime, rng: np.random.Generator) -> list[tuple[float, int, int]]:
    """Departures (seconds after the world's start, origin, destination) of one day, a platoon each."""
    network, weekend = plan.network, day.weekday() >= 5
    junctions = len(network.junctions)
    whole_day = rng.lognormal(0.0, 0.06) * (0.85 if day.weekday() == 6 else 1.0)
    pulse = draw_pulse(rng)
    departures: list[tuple[float, int, int]] = []
    for habit in plan.trips:
        mean = (habit.weekend if weekend else habit.weekday) * whole_day * rng.lognormal(0.0, 0.1) / PLATOON
        centre = habit.hour + rng.normal(0.0, 0.25)
        times = rng.normal(centre, habit.width, rng.poisson(mean * pulse.max())) % 24 * 3600
        times = times[rng.random(len(times)) * pulse.max() < np.interp(times, np.linspace(0, 86_400, 97), pulse)]
        count = len(times)
        origins = rng.choice(junctions, count, p=network.zones[habit.origin])
        destinations = rng.choice(junctions, count, p=network.zones[habit.destination])
        departures += [
            (float(t), int(o), int(d)) for t, o, d in zip(times, origins, destinations, strict=True) if o != d
        ]
    evening_before = [(t - 86_400, o, d) for t, o, d in departures if t >= 86_400 - WARM_UP]
    return sorted((t + WARM_UP, o, d) for t, o, d in departures + evening_before)


def build_world(network: Network, seed: int) -> tuple[Any, list[Any]]:
    """An empty UXsim world with the segments of the network in their order."""
    world = World(
        name="",
        deltan=PLATOON,
        reaction_time=1,
        tmax=WARM_UP + 86_400 + 600,  # never reached: ending a world makes UXsim analyse every trip
        duo_update_time=300,
        duo_noise=0.03,
        route_choice_update_gradual=True,
        no_cyclic_routing=True,
        instantaneous_TT_timestep_interval=1,
        vehicle_logging_timestep_interval=-1,
        print_mode=0,
        save_mode=0,
        show_progress=0,
        random_seed=seed,
        cpp=True,
    )
    for i, (x, y) in enumerate(network.junctions):
        world.addNode(f"j{i}", x, y)
    segments = [
        world.addLink(
            f"s{i}",
            f"j{network.start[i]}",
            f"j{network.end[i]}",
            length=float(network.length[i]),
            free_flow_speed=float(network.free_flow[i]) / 3.6,
            jam_density_per_lane=JAM_DENSITY,
            number_of_lanes=int(network.lanes[i]),
            merge_priority=float(network.lanes[i]),
            capacity_out=float(SATURATION * network.lanes[i] * network.green[i]),
        )
        for i in range(network.size)
    ]
    return world, segments


def simulate_day(plan: CityPlan, day: datetime, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """True mean speed (km/h) and flow (vehicles) of one day, both ``[288, N]``."""
    network = plan.network
    world, segments = build_world(network, int(rng.integers(2**31)))
    for departure, origin, destination in draw_trips(plan, day, rng):
        world.addVehicle(f"j{origin}", f"j{destination}", departure)
    events = draw_disturbances(plan, rng)

    for now in sorted({e.begin for e in events} | {e.finish for e in events} | {86_400.0}):
        world.exec_simulation(until_t=WARM_UP + now)
        capacity, speed = SATURATION * network.lanes * network.green, network.free_flow / 3.6
        for event in events:
            if event.begin <= now < event.finish:
                capacity[event.segments] *= event.capacity
                speed[event.segments] *= event.speed
        for segment, c, v in zip(segments, capacity, speed, strict=True):
            segment.capacity_out = c
            segment.change_free_flow_speed(v)
    return measure(network, segments)


def measure(network: Network, segments: list[Any]) -> tuple[Floats, Floats]:
    """Five-minute aggregates of the segments: distance driven over time spent (Edie's mean speed), and the flow."""
    per_step = INTERVAL_MINUTES * 60 // PLATOON
    day = slice(WARM_UP // PLATOON, WARM_UP // PLATOON + STEPS_PER_DAY * per_step)
    speeds, flows = [], []
    for segment, length, posted in zip(segments, network.length, network.free_flow, strict=True):
        arrived, departed = np.asarray(segment.cum_arrival), np.asarray(segment.cum_departure)
        present = (arrived - departed)[day].reshape(STEPS_PER_DAY, per_step)
        speed = 3.6 * length / np.asarray(segment.traveltime_instant)[day].reshape(STEPS_PER_DAY, per_step)
        spent = present.sum(axis=1)
        mean = (present * np.minimum(speed, posted)).sum(axis=1) / np.maximum(spent, 1e-9)
        passed = (arrived + departed)[day.start - 1 : day.stop : per_step] / 2
        speeds.append(np.where(spent > 0, mean, posted))
        flows.append(np.diff(passed))
    flow = np.stack(flows, axis=1)
    full = SATURATION * network.lanes * network.green * 60 * INTERVAL_MINUTES
    return np.stack(speeds, axis=1) * (1 - FRICTION * np.minimum(flow / full, 1.0) ** 2), flow


def draw_gaps(steps: int, sensors: int, rng: np.random.Generator) -> Bools:
    """True where a reading is lost: short dropouts, outages of one sensor for hours, rarely the whole city at once."""
    lost = np.zeros((steps, sensors), dtype=bool)
    days = max(steps / STEPS_PER_DAY, 1.0)

    def lose(count: int, low: int, high: int) -> None:
        for t, n in zip(rng.integers(0, steps, count), rng.integers(0, sensors, count), strict=True):
            lost[t : t + int(rng.integers(low, high)), n] = True

    lose(rng.poisson(0.0045 * steps * sensors), 1, 5)
    lose(rng.poisson(0.035 * days * sensors), 24, 130)
    for t in rng.integers(0, steps, max(1, rng.poisson(0.15 * days))):
        lost[t : t + 6] = True
    return lost


def detect(network: Network, speed: Floats, flow: Floats, rng: np.random.Generator) -> Detectors:
    """Turn the truth into reports: noise, counting errors, the posted speed where nobody drove, and gaps."""
    calm = 0.4 + 0.6 * speed / network.free_flow  # in a crawl the error of a speed is smaller than at full speed
    noisy = speed + rng.normal(size=speed.shape) * calm * rng.uniform(0.8, 1.6, network.size)
    # Vehicles move in platoons; of one at the border of two intervals, detectors see a part in each.
    split = rng.uniform(-PLATOON / 2, PLATOON / 2, flow.shape)
    counted = flow + np.where(flow > 0, split + rng.normal(0.0, 0.02, flow.shape) * flow, 0.0)
    lost = draw_gaps(*speed.shape, rng)
    return Detectors(
        np.where(lost, np.nan, np.maximum(noisy, 0.5)), np.where(lost, np.nan, np.rint(np.maximum(counted, 0.0)))
    )


def encode(values: Floats, scale: float) -> NDArray[np.uint16]:
    """Whole multiples of ``1 / scale`` with the missing code, the form in which readings are small on disk."""
    return np.where(np.isnan(values), MISSING, np.rint(np.nan_to_num(values) * scale)).astype(np.uint16)


def make_city(name: str, days: int, seed: int, output: Path) -> None:
    """Simulate one city and write its data and its card."""
    identity = [seed, *name.encode()]
    plan = CITY_PLANS[name](np.random.default_rng(identity))
    network, start = plan.network, datetime.fromisoformat(plan.start)
    speeds, flows = [], []
    for day in range(days):
        began = time.perf_counter()
        speed, flow = simulate_day(plan, start + timedelta(days=day), np.random.default_rng([*identity, day]))
        if (speed[-1] < 0.5 * network.free_flow).mean() > 0.05:
            raise SystemExit(f"{name} is still jammed at midnight of day {day + 1}: gridlock, take another seed")
        speeds.append(speed)
        flows.append(flow)
        print(f"{name} day {day + 1}/{days}: mean speed {speed.mean():.1f} km/h, {time.perf_counter() - began:.0f} s")
    truth = np.concatenate(speeds), np.concatenate(flows)
    reports = detect(network, *truth, np.random.default_rng([*identity, 10_000]))

    turns = network.turns()
    path = output / f"{name}.npz"
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        speed=encode(reports.speed, 10),
        flow=encode(reports.flow, 1),
        edge_index=turns.astype(np.int32),
        edge_distance=((network.length[turns[0]] + network.length[turns[1]]) / 2).astype(np.float32),
        node_ids=np.array([f"{name}-{i:03d}" for i in range(network.size)]),
        pos=network.positions(plan.latitude, plan.longitude),
        length=network.length.astype(np.float32),
        free_flow=network.free_flow.astype(np.float32),
        lanes=network.lanes.astype(np.int8),
        start=np.array(plan.start),
        interval_minutes=np.int64(INTERVAL_MINUTES),
        seed=np.int64(seed),
    )
    command = f"python datasets/simulate_demo_cities.py --cities {name} --days {days} --seed {seed}"
    path.with_suffix(".md").write_text(card(plan, reports, path, command, seed), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def card(plan: CityPlan, reports: Detectors, path: Path, command: str, seed: int) -> str:
    """The city's card; every number on it is measured from the data that were just written."""
    network, speed, flow = plan.network, reports.speed, reports.flow
    start = datetime.fromisoformat(plan.start)
    steps = np.arange(len(speed))
    hour = steps % STEPS_PER_DAY * INTERVAL_MINUTES / 60
    weekday = (start.weekday() + steps // STEPS_PER_DAY) % 7 < 5
    congested = speed < 0.5 * network.free_flow

    def mean_speed(days: Bools, *spans: tuple[float, float]) -> str:
        chosen = days & np.any([(low <= hour) & (hour < high) for low, high in spans], axis=0)
        return f"{np.nanmean(speed[chosen]):.1f} km/h" if chosen.any() else "no such day in this run"

    def jam(days: Bools) -> str:
        if not days.any():
            return "no such day in this run"
        share = congested[days].sum() / np.isfinite(speed[days]).sum()
        return f"{share * 24 * 60:.0f} min"

    turns = network.turns()
    facts = [
        ("readings missing", f"{np.isnan(speed).mean():.2%}"),
        ("mean speed, weekdays 07:00-09:00 and 16:00-18:00", mean_speed(weekday, (7, 9), (16, 18))),
        ("mean speed, weekdays 10:00-15:00", mean_speed(weekday, (10, 15))),
        ("mean speed, weekdays 01:00-05:00", mean_speed(weekday, (1, 5))),
        ("mean speed, weekends 11:00-16:00", mean_speed(~weekday, (11, 16))),
        ("mean speed, weekends 01:00-05:00", mean_speed(~weekday, (1, 5))),
        ("congested (below half of free flow) per segment and weekday", jam(weekday)),
        ("congested per segment and weekend day", jam(~weekday)),
        ("segments that are ever congested", f"{congested.any(axis=0).sum()} of {network.size}"),
        ("mean flow of a segment", f"{np.nanmean(flow) * 60 / INTERVAL_MINUTES:.0f} veh/h"),
        ("vehicles starting on a planned weekday", f"{sum(t.weekday for t in plan.trips):,.0f}"),
        ("vehicles starting on a planned Saturday", f"{sum(t.weekend for t in plan.trips):,.0f}"),
    ]
    rows = [
        (
            "`speed`",
            f"uint16 `[{speed.shape[0]}, {speed.shape[1]}]`",
            "0.1 km/h, interval mean; 65535 = missing",
        ),
        ("`flow`", f"uint16 `[{flow.shape[0]}, {flow.shape[1]}]`", "vehicles per interval; 65535 = missing"),
        ("`edge_index`", f"int32 `[2, {turns.shape[1]}]`", "turns from segment to segment, no U-turns"),
        ("`edge_distance`", f"float32 `[{turns.shape[1]}]`", "metres from midpoint to midpoint along the roads"),
        ("`node_ids`", f"text `[{network.size}]`", f"`{plan.name}-000` onwards"),
        ("`pos`", f"float64 `[{network.size}, 2]`", "latitude, longitude of the midpoint (an invented place)"),
        ("`length`, `free_flow`", f"float32 `[{network.size}]`", "metres; km/h"),
        ("`lanes`", f"int8 `[{network.size}]`", "lanes of this direction"),
        ("`start`, `interval_minutes`, `seed`", "scalars", f"`{plan.start}`, {INTERVAL_MINUTES}, {seed}"),
    ]
    lines = [
        f"# {plan.name}",
        "",
        f"A simulated city: {len(speed) // STEPS_PER_DAY} days of five-minute speed and flow on {network.size} road "
        f"segments, from {start:%A} {start:%Y-%m-%d %H:%M}. The place does not exist.",
        "",
        "## Source",
        "",
        "| | |",
        "|---|---|",
        f"| source | simulated with UXsim {version('uxsim')} (C++ engine) |",
        f"| script | `datasets/simulate_demo_cities.py`, seed {seed} |",
        f"| command | `{command}` |",
        "",
        "## Terms",
        "",
        "MIT, as the rest of this repository.",
        "",
        "## Shape",
        "",
        "| | |",
        "|---|---|",
        f"| nodes x steps | {network.size} x {len(speed)} ({len(speed) // STEPS_PER_DAY} days) |",
        f"| interval | {INTERVAL_MINUTES} min, from {start:%Y-%m-%d %H:%M} |",
        f"| channels (units) | `speed` (km/h), `flow` (veh/{INTERVAL_MINUTES}min) |",
        f"| missing | 65535 in the file: {100 * np.isnan(speed).mean():.2f} % of the readings |",
        f"| graph | {2 * turns.shape[1]} edges: turns in both directions, Gaussian kernel of the metres from midpoint "
        "to midpoint |",
        f"| node ids, positions | `{plan.name}-000` onwards; latitude and longitude of the midpoints |",
        "",
        "## Files",
        "",
        "Bundled: there is nothing to get.",
        "",
        "| file | what it holds | SHA-256 |",
        "|---|---|---|",
        f"| `{path.name}` | the arrays below, {path.stat().st_size:,} bytes | "
        f"`{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        "## Load",
        "",
        "```python",
        "from tsjt_pyg.datasets import load_city",
        "",
        f'city = load_city("demo/{plan.name}")',
        "```",
        "",
        "## What the file holds",
        "",
        "| array | form | meaning |",
        "|---|---|---|",
        *(f"| {name} | {form} | {meaning} |" for name, form, meaning in rows),
        "",
        "A gap hits both channels at once. Where no vehicle was on a segment, `flow` is 0 and `speed` is the free-flow "
        "speed with noise, as agencies impute it.",
        "",
        "## Graph",
        "",
        f"Nodes are directed road segments ({network.length.min():.0f} to {network.length.max():.0f} m, "
        f"{network.free_flow.min():.0f} to {network.free_flow.max():.0f} km/h, {network.lanes.min()} to "
        f"{network.lanes.max()} lanes) between {len(network.junctions)} junctions; edges are turns.",
        "",
        "## Demand and what is peculiar",
        "",
        plan.peculiar,
        "",
        "Weekdays have two peaks, weekends one around midday. Each day draws its own demand, about "
        f"{plan.incidents_per_day:g} incidents of 20 to 90 minutes and {plan.works_per_day:g} road works of 3 to 9 "
        "hours (both cut capacity and speed of one segment) and, on somewhat less than half of the days, hours of rain "
        "(6 to 20 % slower, 3 to 10 % less capacity). Sensors drop out for minutes, single ones for hours, rarely all "
        "of them for half an hour.",
        "",
        "Speeds carry noise with a standard deviation of 0.8 to 1.6 km/h, less in a crawl; a full but flowing road is "
        "up to 10 % slower than an empty one.",
        "",
        "## Measured",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in facts),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cities", nargs="+", choices=sorted(CITY_PLANS), default=sorted(CITY_PLANS))
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("datasets/demo"))
    arguments = parser.parse_args()
    for name in arguments.cities:
        make_city(name, arguments.days, arguments.seed, arguments.output)


if __name__ == "__main__":
    main()
